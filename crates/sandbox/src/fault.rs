//! What went wrong while a sandbox was being set up, in a form that crosses a process boundary.

use std::{fmt, io, path::Path};

use serde::{Deserialize, Serialize};

/// One failed step, with the object it was about and the kernel's error number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What was being done, as in "mount the overlay of".
    pub step: String,
    /// The path or name it was done to.
    pub object: String,
    /// The kernel's error number, or 0 when it was not the kernel that refused.
    pub errno: i32,
}

impl Fault {
    /// A step that failed for a reason that is no error number.
    pub(crate) fn new(step: impl Into<String>, object: impl Into<String>) -> Self {
        Self { step: step.into(), object: object.into(), errno: 0 }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}", self.step, self.object)?;
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// Names the step and the object of an error that knows neither.
pub(crate) trait Context<T> {
    /// Turns an error into a [`Fault`] of `step` on `object`.
    fn during(self, step: &str, object: impl AsRef<Path>) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn during(self, step: &str, object: impl AsRef<Path>) -> Result<T, Fault> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            let errno = error.raw_os_error().unwrap_or(0);
            let step = if errno == 0 { format!("{step} ({error})") } else { step.to_owned() };
            Fault { step, object: object.as_ref().display().to_string(), errno }
        })
    }
}
