//! The manifest: per tenant, the truth about which blocks exist and how far each WAL is covered.
