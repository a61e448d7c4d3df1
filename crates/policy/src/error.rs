//! Why a policy is refused.

use crate::List;

/// Why a policy does not compile. Names the entry and its position.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PolicyError {
    /// An entry is not valid.
    #[error("{list:?}[{index}]: {entry:?}: {source}")]
    Entry {
        /// The list.
        list: List,
        /// The position, from 0.
        index: usize,
        /// The entry as written.
        entry: String,
        /// What is wrong with it.
        source: EntryError,
    },
}

/// What is wrong with one entry.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EntryError {}

/// Something accepted that is probably not meant.
#[derive(Clone, Debug)]
pub struct Warning {}
