//! Logs of the lab: JSON lines in a file, readable while they are written.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};

/// A file that gets one JSON object a line. Clones write to the same file.
#[derive(Clone, Debug)]
pub struct Log {
    path: Arc<PathBuf>,
    file: Arc<Mutex<std::fs::File>>,
}

impl Log {
    /// Creates (and empties) the file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path: Arc::new(path.to_owned()), file: Arc::new(Mutex::new(file)) })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one object as a line, in one write, so that a reader never sees half of it.
    pub fn line(&self, object: &serde_json::Value) {
        let text = format!("{object}\n");
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = file.write_all(text.as_bytes()) {
            // A lab whose canary cannot write proves nothing: say so loudly.
            complain(&format!("cannot write {}: {error}", self.path.display()));
        }
    }

    /// All lines so far.
    pub fn lines(&self) -> Result<Vec<serde_json::Value>> {
        // Nobody writes meanwhile.
        let _file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let text = std::fs::read_to_string(&*self.path)
            .with_context(|| format!("reading {}", self.path.display()))?;
        text.lines().map(|line| serde_json::from_str(line).context("a log line is not JSON")).collect()
    }
}

/// Says what went wrong in the background, where nobody can be given an error.
#[expect(clippy::print_stderr, reason = "the lab is a developer tool without a logger")]
pub(crate) fn complain(text: &str) {
    eprintln!("lab: {text}");
}
