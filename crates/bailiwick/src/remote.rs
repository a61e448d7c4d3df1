//! The daemon that commands talk to over its API: where it is, by which key, and what to do when it refuses.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, Result, anyhow};
use client::{Client, ClientError, Endpoint};
use secrecy::SecretString;

use crate::{cli::ApiArgs, exit::BadInput, printable::printable};

/// The longest key file, in bytes: a key has 44.
const LONGEST_KEY: u64 = 4096;

/// A client of the daemon that options and environment name. Nothing is connected yet.
pub(crate) fn client(args: &ApiArgs) -> Result<Client> {
    let variable = |name| std::env::var(name).ok();
    let url = args.api_url.clone().or_else(|| variable("DECLAW_API_URL"));
    let endpoint =
        Endpoint::find(url.as_deref(), variable("DECLAW_DOMAIN").as_deref()).map_err(ApiFailure)?;
    let key = match &args.api_key_file {
        Some(file) => key_in(file)?,
        None => ["BAILIWICK_API_KEY", "DECLAW_API_KEY"]
            .into_iter()
            .filter_map(variable)
            .map(|key| key.trim().to_owned())
            .find(|key| !key.is_empty())
            .map(SecretString::from)
            .ok_or_else(|| {
                anyhow!(BadInput(
                    "there is no API key: set BAILIWICK_API_KEY or give --api-key-file (`bailiwick keys create` makes one)"
                        .to_owned()
                ))
            })?,
    };
    Ok(Client::new(endpoint, Some(key), args.api_ca.as_deref()).map_err(ApiFailure)?)
}

fn key_in(path: &Path) -> Result<SecretString> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_KEY).read_to_string(&mut text))
        .with_context(|| format!("reading the API key in {}", path.display()))?;
    match text.trim() {
        "" => Err(anyhow!(BadInput(format!("--api-key-file {}: there is no key in it", path.display())))),
        key => Ok(SecretString::from(key)),
    }
}

/// A call that failed, with what can be done about it.
#[derive(Debug)]
pub(crate) struct ApiFailure(pub ClientError);

impl ApiFailure {
    /// Whether it is what was asked for that is wrong: an invalid value, or the name of something that is not there.
    pub(crate) fn is_bad_input(&self) -> bool {
        self.0.is_bad_input() || self.0.status() == Some(404)
    }

    fn advice(&self) -> Option<&'static str> {
        let advice = match &self.0 {
            ClientError::Connect { .. } => {
                "is it running (`bailiwick serve`)? --api-url or BAILIWICK_API_URL says where it is"
            }
            ClientError::Answer { .. } => "is --api-url the address of a Bailiwick daemon?",
            ClientError::Status { status, code, .. } => match (status, code.as_deref()) {
                (401, _) => "check BAILIWICK_API_KEY or --api-key-file; `bailiwick keys create` makes a key",
                (403, Some(api::code::POLICY_WIDENS)) => "an API key may widen it",
                (404, _) => "`bailiwick sandbox ls` shows which sandboxes there are",
                (409, Some(api::code::SANDBOX_PAUSED)) => "`bailiwick sandbox resume` lets it go on",
                (429 | 503, _) => "try again later",
                (501, _) => "this version of the daemon does not have it",
                _ => return None,
            },
            _ => return None,
        };
        Some(advice)
    }
}

/// All of it in one line; a daemon, or a name that code in a sandbox chose, must not command the terminal.
impl std::fmt::Display for ApiFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = self.0.to_string();
        let mut cause = std::error::Error::source(&self.0);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        f.write_str(&printable(&text))?;
        self.advice().map_or(Ok(()), |advice| write!(f, "; {advice}"))
    }
}

impl std::error::Error for ApiFailure {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    fn status(status: u16, code: Option<&str>) -> ApiFailure {
        let message = "allow_out[1]\u{1b}[2J".to_owned();
        ApiFailure(ClientError::Status { status, code: code.map(str::to_owned), message })
    }

    #[test]
    fn a_failure_says_what_to_do_and_whether_the_input_is_bad() {
        for (status, expected, advice) in [
            (status(400, Some("invalid_policy")), exit::BAD_INPUT, "(400 invalid_policy)"),
            (status(404, None), exit::BAD_INPUT, "sandbox ls"),
            (status(401, None), exit::FAILED, "keys create"),
            (status(409, Some("sandbox_paused")), exit::FAILED, "sandbox resume"),
            (status(501, Some("not_implemented")), exit::FAILED, "does not have it"),
            (status(500, None), exit::FAILED, "(500)"),
        ] {
            let text = status.to_string();
            assert!(text.ends_with(advice) || text.contains(advice), "{text}");
            assert!(text.starts_with("allow_out[1]") && !text.contains('\u{1b}'), "{text}");
            assert_eq!(exit::code_of(&anyhow!(status)), expected, "{text}");
        }
    }

    #[test]
    fn a_key_is_read_from_a_file_without_its_line_end() {
        use secrecy::ExposeSecret;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        std::fs::write(&file, "dcl_abc\n").unwrap();
        assert_eq!(key_in(&file).unwrap().expose_secret(), "dcl_abc");
        std::fs::write(&file, "\n").unwrap();
        assert_eq!(exit::code_of(&key_in(&file).unwrap_err()), exit::BAD_INPUT);
        assert!(key_in(&directory.path().join("none")).is_err());
    }
}
