//! Files in a sandbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A text file to write.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct WriteFile {
    /// The absolute path. Directories that are missing are made.
    pub path: String,
    /// The content.
    pub data: String,
    /// The user to write as. Default `user`.
    #[serde(default)]
    pub username: Option<String>,
}

/// Several text files to write.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct WriteFiles {
    /// The files.
    pub files: Vec<WriteFile>,
    /// The user for files that name none.
    #[serde(default)]
    pub username: Option<String>,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Written {
    /// The path as given.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// The last part of the path.
    pub name: String,
    /// The absolute path.
    pub path: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
}

/// The two kinds that every client knows. A symbolic link is what it points to; anything else is a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A file, or anything that is not a directory.
    File,
    /// A directory.
    Dir,
}

/// Whether a path exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exists {
    /// See the type.
    pub exists: bool,
}

/// A path to rename.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Rename {
    /// The absolute path now.
    pub old_path: String,
    /// The absolute path it is to have.
    pub new_path: String,
    /// The user to act as. Default `user`.
    #[serde(default)]
    pub username: Option<String>,
}

/// A directory to watch.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct WatchDirectory {
    /// The absolute path.
    pub path: String,
    /// The user to act as. Default `user`.
    #[serde(default)]
    pub username: Option<String>,
    /// Whether directories in it are watched too.
    #[serde(default, deserialize_with = "crate::lenient::null_is_default")]
    pub recursive: bool,
}

/// A change in a watched directory, as an event of its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DirectoryChange {
    /// `create`, `write`, `remove`, `rename` (moved away), `chmod`; or `lost`, without a path: changes came faster than
    /// they were read, and some are missing.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The absolute path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Whether it is, or was, a directory.
    pub is_dir: bool,
}

/// A directory to make, with its parents.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct MakeDirectory {
    /// The absolute path.
    pub path: String,
    /// The user to act as. Default `user`.
    #[serde(default)]
    pub username: Option<String>,
}

/// Whether a directory was made; false if it was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MadeDirectory {
    /// See the type.
    pub created: bool,
}

/// A path was removed, or was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// Whether there was anything.
    pub removed: bool,
}
