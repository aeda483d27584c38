//! Tenant limits and their overrides: who may send how much.
