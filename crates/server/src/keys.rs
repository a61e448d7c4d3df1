//! API keys: making them, and finding the account that one speaks for.
//!
//! A key is 40 random base-62 digits (238 bits) after `dcl_`. Only its SHA-256 is stored: a fast hash is enough for
//! a value that cannot be guessed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::RwLock;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use store::{KeyRecord, Store, StoreError};
use subtle::ConstantTimeEq;

/// What every key begins with. Published clients show and redact keys of this form.
const PREFIX: &str = "dcl_";
const DIGITS: usize = 40;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// How long a key that was found good is trusted without looking again; so long a revoked key may still work.
const TRUST: Duration = Duration::from_secs(5);
/// Keys remembered at once.
const REMEMBERED: usize = 4096;

/// Why no key was made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system gave no random bytes.
    #[error("cannot make an API key: no random bytes from the system: {0}")]
    Random(getrandom::Error),
    /// The key cannot be stored.
    #[error("cannot store the API key {name:?}")]
    Store {
        /// The key's name.
        name: String,
        /// The failure.
        source: StoreError,
    },
}

/// Makes a key for `account`, stores its hash and returns the key, which cannot be shown again.
///
/// # Errors
/// [`KeyError`] if there are no random bytes or the store fails.
pub async fn create(store: &Store, account: &str, name: &str) -> Result<SecretString, KeyError> {
    let secret = format!("{PREFIX}{}", random_digits(DIGITS)?);
    let record = KeyRecord {
        id: format!("key-{}", random_digits(12)?),
        account: account.to_owned(),
        name: name.to_owned(),
        hash: hash(&secret),
        masked: mask(&secret),
        created_at: Timestamp::now(),
        revoked: false,
    };
    store.keys().put(&record).await.map_err(|source| KeyError::Store { name: name.to_owned(), source })?;
    Ok(SecretString::from(secret))
}

/// Looks keys up, and remembers good ones for a few seconds so that a request costs no query.
pub(crate) struct KeyRing {
    store: Store,
    good: RwLock<HashMap<[u8; 32], Good>>,
}

struct Good {
    key: Key,
    checked: Instant,
}

/// A key that was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Its id.
    pub(crate) id: Arc<str>,
    /// The account it speaks for.
    pub(crate) account: Arc<str>,
}

impl KeyRing {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, good: RwLock::default() }
    }

    /// The key that `secret` is; `None` if it is not a key, or a revoked one.
    pub(crate) async fn find(&self, secret: &SecretString) -> Result<Option<Key>, StoreError> {
        let hash = hash(secret.expose_secret());
        if let Some(key) = self.remembered(&hash) {
            return Ok(Some(key));
        }
        let Some(record) = self.store.keys().by_hash(&hash).await? else { return Ok(None) };
        // The index found it by comparing hashes, which reveals nothing about a key; this is the comparison that
        // decides, and it takes the same time wherever a difference is.
        if record.revoked || !bool::from(record.hash.ct_eq(&hash)) {
            return Ok(None);
        }
        let key = Key { id: record.id.into(), account: record.account.into() };
        self.remember(hash, &key);
        Ok(Some(key))
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<Key> {
        let good = self.good.read();
        good.get(hash).filter(|good| good.checked.elapsed() < TRUST).map(|good| good.key.clone())
    }

    fn remember(&self, hash: [u8; 32], key: &Key) {
        let mut good = self.good.write();
        if good.len() >= REMEMBERED {
            good.retain(|_, good| good.checked.elapsed() < TRUST);
        }
        if good.len() < REMEMBERED {
            good.insert(hash, Good { key: key.clone(), checked: Instant::now() });
        }
    }
}

pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// The first and last characters, for lists.
fn mask(secret: &str) -> String {
    let (head, tail) =
        (secret.get(..8).unwrap_or_default(), secret.get(secret.len() - 4..).unwrap_or_default());
    format!("{head}…{tail}")
}

/// Random base-62 digits, each equally likely.
pub(crate) fn random_digits(count: usize) -> Result<String, KeyError> {
    let mut digits = String::with_capacity(count);
    let mut bytes = [0_u8; 64];
    while digits.len() < count {
        getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
        // 248 is the greatest multiple of 62 below 256: bytes from there up would favour some digits.
        let fair =
            bytes.iter().filter(|byte| **byte < 248).filter_map(|byte| ALPHABET.get(usize::from(byte % 62)));
        digits.extend(fair.take(count - digits.len()).map(|digit| char::from(*digit)));
    }
    Ok(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("data")).await.unwrap();
        (dir, store)
    }

    async fn account(ring: &KeyRing, secret: &SecretString) -> Option<Arc<str>> {
        ring.find(secret).await.unwrap().map(|key| key.account)
    }

    #[tokio::test]
    async fn a_key_opens_its_account_and_no_other_text_does() {
        let (_dir, store) = store().await;
        let key = create(&store, "alice", "first").await.unwrap();
        let other = create(&store, "bob", "first").await.unwrap();
        let ring = KeyRing::new(store);
        for _ in 0..2 {
            assert_eq!(account(&ring, &key).await.as_deref(), Some("alice"));
            assert_eq!(account(&ring, &other).await.as_deref(), Some("bob"));
            for wrong in ["", "dcl_", &key.expose_secret()[..40], &key.expose_secret().to_lowercase()] {
                assert_eq!(ring.find(&SecretString::from(wrong)).await.unwrap(), None);
            }
        }
    }

    #[tokio::test]
    async fn a_key_is_stored_only_as_a_hash_and_keys_have_one_form() {
        let (_dir, store) = store().await;
        let key = create(&store, "alice", "first").await.unwrap();
        let key = key.expose_secret();
        assert_eq!((key.len(), key.get(..4)), (44, Some("dcl_")));
        assert!(key[4..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let stored = &store.keys().list("alice").await.unwrap()[0];
        assert_eq!(stored.hash, hash(key));
        assert!(!format!("{stored:?}{}", stored.masked).contains(&key[8..40]));
    }

    #[tokio::test]
    async fn a_revoked_key_opens_nothing() {
        let (_dir, store) = store().await;
        let key = create(&store, "alice", "first").await.unwrap();
        let id = store.keys().list("alice").await.unwrap()[0].id.clone();
        assert!(store.keys().revoke("alice", &id).await.unwrap());
        assert_eq!(KeyRing::new(store).find(&key).await.unwrap(), None);
    }
}
