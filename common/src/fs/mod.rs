//! The file system behind a small trait, so that power cuts can be simulated.
