//! Why a template cannot be made or used.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::fault::Fault;

/// Why a template cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// There is none of this name.
    #[error("no such template: {0}")]
    Unknown(String),
    /// It is one that can be built and has not been.
    #[error("the template {0} has not been built; run `bailiwick template build {0}`")]
    NotReady(String),
    /// The name is taken by a built-in one, or cannot be a name.
    #[error(
        "{0:?} cannot be the name of a template of yours: letters, digits, `.`, `_` and `-`, the first one a lower-case letter or digit, and not host, base or python"
    )]
    Name(String),
    /// A program that the build needs is not installed.
    #[error("{0} is not installed; install it with the machine's package manager")]
    ProgramMissing(&'static str),
    /// The build failed.
    #[error("building the template {name} failed: {detail}")]
    Build {
        /// The template.
        name: String,
        /// The last lines of what the build said.
        detail: String,
    },
    /// The machine has no package sources from which its distribution could be built.
    #[error("no package sources of {0} are configured below /etc/apt")]
    NoSources(String),
    /// The machine is organised in a way that `host` cannot show.
    #[error("this machine cannot be a template: {0}")]
    Machine(String),
    /// The archive cannot be used.
    #[error("{}: {detail}", path.display())]
    Archive {
        /// The archive, or the file inside it.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A file cannot be worked on.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An old template cannot be deleted.
    #[error(transparent)]
    Remove(Fault),
}

/// Names the action and the path of an error that knows neither.
pub(super) trait Doing<T> {
    fn doing(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, TemplateError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, TemplateError> {
        self.map_err(|error| TemplateError::Io {
            action,
            path: path.as_ref().to_owned(),
            source: error.into(),
        })
    }
}
