//! Typed JSON: attribute values, resources and scopes as text that any engine reads and that loses nothing.
