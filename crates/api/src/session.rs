//! Sessions: commands whose output is followed, with a terminal or with pipes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    FieldError, Seconds,
    lenient::{check_envs, null_is_default},
};

/// Size of a terminal, in characters. A length of 0 is one that is not known: it is what a terminal says that was never
/// told its own size, and what the CLI passes on then. The usual length stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PtySize {
    /// Characters in a line, up to 4096. 0: 80.
    #[schema(minimum = 0, maximum = 4096)]
    pub cols: u16,
    /// Lines, up to 4096. 0: 24.
    #[schema(minimum = 0, maximum = 4096)]
    pub rows: u16,
}

impl PtySize {
    /// What terminals have had since there are terminals.
    pub const DEFAULT: Self = Self { cols: 80, rows: 24 };
    /// Most columns, and most rows: programs allocate what a terminal says it shows.
    pub const MOST: u16 = 4096;

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] naming the field.
    pub fn check(self) -> Result<(), FieldError> {
        for (field, number) in [("size.cols", self.cols), ("size.rows", self.rows)] {
            if number > Self::MOST {
                let problem = format!("{number} is more than {}", Self::MOST);
                return Err(FieldError::invalid(field, problem));
            }
        }
        Ok(())
    }

    /// The size with the usual lengths for those that are not known.
    #[must_use]
    pub fn or_usual(self) -> Self {
        let known = |length: u16, usual| if length == 0 { usual } else { length };
        Self { cols: known(self.cols, Self::DEFAULT.cols), rows: known(self.rows, Self::DEFAULT.rows) }
    }
}

/// A terminal to open, with a login shell in it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct OpenPty {
    /// Its size. Default: 80 columns, 24 rows.
    #[serde(default)]
    pub size: Option<PtySize>,
    /// The user to run as. Default `user`.
    #[serde(default)]
    pub user: Option<String>,
    /// Variables besides those of the sandbox, which they override. `TERM` is `xterm-256color` by default.
    #[serde(default, deserialize_with = "null_is_default")]
    pub envs: BTreeMap<String, String>,
    /// The working directory. Default: the user's home directory.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Seconds after which the shell is killed. Absent or 0: no limit.
    #[serde(default)]
    pub timeout: Option<Seconds>,
}

impl OpenPty {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] naming the field.
    pub fn check(&self) -> Result<(), FieldError> {
        self.size.map_or(Ok(()), PtySize::check)?;
        check_envs(&self.envs)
    }
}

/// A new size for a terminal.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
pub struct ResizePty {
    /// The size.
    pub size: PtySize,
}

/// A command to start with pipes.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct StartStdio {
    /// A line for the shell.
    pub cmd: String,
    /// The user to run as. Default `user`.
    #[serde(default)]
    pub user: Option<String>,
    /// Variables besides those of the sandbox, which they override.
    #[serde(default, deserialize_with = "null_is_default")]
    pub envs: BTreeMap<String, String>,
    /// The working directory. Default: the user's home directory.
    #[serde(default)]
    pub cwd: Option<String>,
}

impl StartStdio {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] naming the field.
    pub fn check(&self) -> Result<(), FieldError> {
        if self.cmd.contains('\0') {
            return Err(FieldError::invalid("cmd", "a command has no NUL"));
        }
        check_envs(&self.envs)
    }
}

/// A command that was started with pipes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StdioStarted {
    /// Its name in further requests.
    pub cmd_id: String,
}

/// Bytes for a command's standard input.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct EncodedData {
    /// The bytes in base64.
    pub data: String,
}

/// A piece of output, as an event of its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputPiece {
    /// The bytes in base64.
    pub data: String,
    /// Its number, over both streams: from 1 up, one more each. Numbers that are missing were too old to be kept.
    /// Pieces of terminals have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_id: Option<u64>,
}
