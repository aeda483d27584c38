//! The write-ahead log on local disk.
