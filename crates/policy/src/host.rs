//! Host names.

use std::sync::Arc;

/// A host name in canonical form: lower case, no trailing dot, A-labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Parses and canonicalises.
    pub fn parse(_text: &str) -> Result<Self, HostNameError> {
        unimplemented!()
    }
    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// It has no characters.
    #[error("the name is empty")]
    Empty,
}
