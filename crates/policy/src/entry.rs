//! Entries of a policy.

/// One parsed entry.
#[derive(Clone, Debug)]
pub struct Entry {}

/// What an entry is about.
#[derive(Clone, Debug)]
pub enum Target {}
