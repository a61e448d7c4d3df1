//! Signed reports: that a report is of this machine, and has not been changed since.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::Report;

/// The file of the key in the data directory.
pub const KEY_FILE: &str = "selftest.key";
/// What is signed begins with this, so that the key's signature of anything else is never one of a report.
const CONTEXT: &[u8] = b"bailiwick selftest report 1\n";
const ALGORITHM: &str = "ed25519";
/// The length of a public key, in bytes (RFC 8032 section 5.1.5).
const PUBLIC: usize = 32;

/// Why a report cannot be signed, or is not genuine.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The file of the key cannot be made or read.
    #[error("the key that signs reports, {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Others may read the file of the key.
    #[error(
        "the key that signs reports, {}, can be read by others: chmod 600 it, or remove it to have a new one made",
        path.display()
    )]
    NotPrivate {
        /// The file.
        path: PathBuf,
    },
    /// What is in the file is no key.
    #[error("the key that signs reports, {}, is damaged: remove it to have a new one made", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The system has no random numbers.
    #[error("a key cannot be made: {0}")]
    Generate(String),
    /// The report cannot be written as JSON.
    #[error("the report cannot be written: {0}")]
    Encode(#[from] serde_json::Error),
    /// The text of a public key is not one.
    #[error("{0:?} is not a public key: it is {PUBLIC} bytes as base64, as a report has it")]
    PublicKey(String),
    /// Another algorithm.
    #[error("it is signed with {0:?}, and reports are signed with {ALGORITHM}")]
    Algorithm(String),
    /// It is signed, perhaps rightly, with another key.
    #[error("it is signed with another key, {found}, and not with {trusted}")]
    OtherKey {
        /// The key in the report.
        found: PublicKey,
        /// The key that is trusted.
        trusted: PublicKey,
    },
    /// The signature is not that of this report.
    #[error("the report is not what was signed: it has been changed")]
    Changed,
}

/// A public key. Its text is base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; PUBLIC]);

impl FromStr for PublicKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let bytes = STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| SignatureError::PublicKey(text.to_owned()))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

/// The signature of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// `ed25519`
    pub algorithm: String,
    /// The key that can verify it, as base64.
    pub public_key: String,
    /// The signature, as base64.
    pub value: String,
}

/// A report with its signature, as it is printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReport {
    /// The report.
    pub report: Report,
    /// Its signature.
    pub signature: Signature,
}

impl SignedReport {
    /// Whether the report is what the holder of this key has signed.
    ///
    /// # Errors
    /// [`SignatureError::Algorithm`], [`SignatureError::OtherKey`], [`SignatureError::Changed`]
    pub fn verify(&self, trusted: PublicKey) -> Result<(), SignatureError> {
        let Signature { algorithm, public_key, value } = &self.signature;
        if algorithm != ALGORITHM {
            return Err(SignatureError::Algorithm(algorithm.clone()));
        }
        let found: PublicKey = public_key.parse()?;
        if found != trusted {
            return Err(SignatureError::OtherKey { found, trusted });
        }
        let value = STANDARD.decode(value).map_err(|_| SignatureError::Changed)?;
        UnparsedPublicKey::new(&ED25519, trusted.0)
            .verify(&signed_bytes(&self.report)?, &value)
            .map_err(|_| SignatureError::Changed)
    }
}

/// The key of a machine.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// The key in the data directory `directory`, which is made if there is none.
    ///
    /// # Errors
    /// [`SignatureError`], naming the file.
    pub fn open_or_create(directory: &Path) -> Result<Self, SignatureError> {
        let path = directory.join(KEY_FILE);
        if !path.exists() {
            create(directory, &path)?;
        }
        Self::open(directory)
    }

    /// The key in the data directory `directory`.
    ///
    /// # Errors
    /// [`SignatureError`], naming the file; [`SignatureError::File`] if there is none.
    pub fn open(directory: &Path) -> Result<Self, SignatureError> {
        let path = directory.join(KEY_FILE);
        let failed = |source| SignatureError::File { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(SignatureError::NotPrivate { path });
        }
        let text = io::read_to_string(file).map_err(failed)?;
        let key = STANDARD.decode(text.trim()).ok().and_then(|key| Ed25519KeyPair::from_pkcs8(&key).ok());
        key.map(Self).ok_or(SignatureError::Damaged { path })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; PUBLIC];
        bytes.iter_mut().zip(self.0.public_key().as_ref()).for_each(|(to, from)| *to = *from);
        PublicKey(bytes)
    }

    /// Signs a report.
    ///
    /// # Errors
    /// [`SignatureError::Encode`]
    pub fn sign(&self, report: Report) -> Result<SignedReport, SignatureError> {
        let value = self.0.sign(&signed_bytes(&report)?);
        let signature = Signature {
            algorithm: ALGORITHM.to_owned(),
            public_key: self.public().to_string(),
            value: STANDARD.encode(value.as_ref()),
        };
        Ok(SignedReport { report, signature })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public())
    }
}

/// What is signed: the report as compact JSON with its fields in the order of the type, however it was printed.
fn signed_bytes(report: &Report) -> Result<Vec<u8>, SignatureError> {
    let mut bytes = CONTEXT.to_vec();
    serde_json::to_writer(&mut bytes, report)?;
    Ok(bytes)
}

/// Makes a key. Of two that do this at the same time, the first one's key stays.
fn create(directory: &Path, path: &Path) -> Result<(), SignatureError> {
    let failed = |source| SignatureError::File { path: path.to_owned(), source };
    let generate = |error: aws_lc_rs::error::Unspecified| SignatureError::Generate(error.to_string());
    let key = Ed25519KeyPair::generate().and_then(|key| key.to_pkcs8()).map_err(generate)?;
    fs::create_dir_all(directory).map_err(failed)?;
    let temporary = directory.join(format!("{KEY_FILE}.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{}", STANDARD.encode(key.as_ref()))?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    };
    let written = write();
    // It is there under its name, or it is not wanted.
    let _removed = fs::remove_file(&temporary);
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use policy::PolicySpec;

    use super::*;
    use crate::{CaseReport, Group, Machine, Outcome, REPORT_VERSION, Summary};

    fn report() -> Report {
        Report {
            version: REPORT_VERSION,
            started: "2026-01-02T03:04:05.678901234Z".parse().unwrap(),
            duration_ms: 9000,
            machine: Machine {
                bailiwick: "0.1.0".to_owned(),
                kernel: "6.18".to_owned(),
                architecture: "x86_64".to_owned(),
                template: "host".to_owned(),
            },
            policy_source: "default".to_owned(),
            policy: PolicySpec { allow_out: vec!["api.example.com".to_owned()], ..PolicySpec::default() },
            topology: "no_wire".to_owned(),
            sabotage: None,
            summary: Summary { hole: 1, attempts: 2, ..Summary::default() },
            cases: vec![CaseReport {
                id: "A1".to_owned(),
                group: Group::Destinations,
                title: "an attack".to_owned(),
                outcome: Outcome::Hole,
                attempts: 2,
                permitted: 0,
                rule: None,
                evidence: vec!["a connection reached 185.199.109.66 port 443".to_owned()],
            }],
        }
    }

    #[test]
    fn a_report_is_genuine_however_it_is_printed_and_not_when_anything_is_changed() {
        let directory = tempfile::tempdir().unwrap();
        let key = SigningKey::open_or_create(directory.path()).unwrap();
        let signed = key.sign(report()).unwrap();
        let text = serde_json::to_string_pretty(&signed).unwrap();
        let read: SignedReport = serde_json::from_str(&text).unwrap();
        read.verify(key.public()).unwrap();
        for (from, to) in [
            ("\"outcome\": \"hole\"", "\"outcome\": \"held\""),
            ("\"hole\": 1", "\"hole\": 0"),
            ("185.199.109.66", "104.16.1.1"),
            ("api.example.com", "evil.example.com"),
            ("03:04:05.678901234Z", "03:04:05.678901235Z"),
            ("6.18", "6.19"),
        ] {
            let changed: SignedReport = serde_json::from_str(&text.replace(from, to)).unwrap();
            assert!(matches!(changed.verify(key.public()), Err(SignatureError::Changed)), "{from}");
        }
        let more = text.replacen("\"version\"", "\"note\": \"genuine\", \"version\"", 1);
        assert!(serde_json::from_str::<SignedReport>(&more).is_err());
        let twice = text.replacen("\"version\": 1", "\"version\": 1, \"version\": 1", 1);
        assert!(serde_json::from_str::<SignedReport>(&twice).is_err());
    }

    #[test]
    fn a_report_of_another_key_is_not_of_this_machine() {
        let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mine = SigningKey::open_or_create(mine.path()).unwrap();
        let other = SigningKey::open_or_create(other.path()).unwrap();
        let signed = other.sign(report()).unwrap();
        signed.verify(other.public()).unwrap();
        assert!(matches!(signed.verify(mine.public()), Err(SignatureError::OtherKey { .. })));
        // Nor when it only says that it is.
        let mut claimed = signed;
        claimed.signature.public_key = mine.public().to_string();
        assert!(matches!(claimed.verify(mine.public()), Err(SignatureError::Changed)));
        claimed.signature.algorithm = "none".to_owned();
        assert!(matches!(claimed.verify(mine.public()), Err(SignatureError::Algorithm(_))));
    }

    #[test]
    fn the_key_is_kept_private_and_stays_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let first = SigningKey::open_or_create(directory.path()).unwrap().public();
        let path = directory.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(SigningKey::open_or_create(directory.path()).unwrap().public(), first);
        assert_eq!(first.to_string().parse::<PublicKey>().unwrap(), first);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SigningKey::open(directory.path()), Err(SignatureError::NotPrivate { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "no key").unwrap();
        assert!(matches!(SigningKey::open(directory.path()), Err(SignatureError::Damaged { .. })));
        assert!("c2hvcnQ=".parse::<PublicKey>().is_err());
    }
}
