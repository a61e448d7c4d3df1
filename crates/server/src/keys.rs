//! API keys: making them, finding the account that one speaks for, and noticing that one was revoked.
//!
//! A key is 40 random base-62 digits (238 bits) after `dcl_`. Only its SHA-256 is stored: a fast hash is enough for
//! a value that cannot be guessed.
//!
//! A key that was found good is remembered, so that a request costs no query, but only as long as nothing has been
//! revoked since: not here, nor by `bailiwick keys` in another process, which is noticed by [`store::Keys::revocations`].

use std::{
    collections::HashMap,
    sync::{Arc, Once},
    time::{Duration, Instant},
};

use api::{AccountName, KeyName};
use jiff::Timestamp;
use parking_lot::RwLock;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use store::{KeyRecord, MAX_KEYS, Revocation, Store, StoreError};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

/// What every key begins with. Published clients show and redact keys of this form.
pub(crate) const PREFIX: &str = "dcl_";
const DIGITS: usize = 40;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// How long a key that was found good is trusted without looking again, even if nothing tells that one was revoked.
const TRUST: Duration = Duration::from_secs(5);
/// How often is looked whether another process has revoked a key, for requests that are being answered.
const LOOK: Duration = Duration::from_millis(250);
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
    /// The account has as many keys as it can have.
    #[error(
        "the account {account} has {MAX_KEYS} keys in force, and no account can have more; revoke one first"
    )]
    TooMany {
        /// The account.
        account: AccountName,
    },
}

/// A key that was made.
#[derive(Debug)]
pub struct NewKey {
    /// Its id, by which it can be revoked.
    pub id: String,
    /// The key.
    pub secret: SecretString,
}

/// Makes a key for `account`, which begins with its first key. Its hash is stored; the key cannot be shown again.
///
/// # Errors
/// [`KeyError`] if there are no random bytes, the store fails, or the account has too many keys.
pub async fn create(store: &Store, account: &AccountName, name: &KeyName) -> Result<NewKey, KeyError> {
    let secret = format!("{PREFIX}{}", random_digits(DIGITS)?);
    let record = KeyRecord {
        id: format!("key-{}", random_digits(12)?),
        account: account.to_string(),
        name: name.to_string(),
        hash: hash(&secret),
        masked: mask(&secret),
        created_at: Timestamp::now(),
        revoked: false,
    };
    match store.keys().put(&record).await {
        Ok(true) => Ok(NewKey { id: record.id, secret: SecretString::from(secret) }),
        Ok(false) => Err(KeyError::TooMany { account: account.clone() }),
        Err(source) => Err(KeyError::Store { name: record.name, source }),
    }
}

/// Looks keys up, and remembers good ones.
pub(crate) struct KeyRing {
    store: Store,
    good: RwLock<HashMap<[u8; 32], Good>>,
    /// What [`store::Keys::revocations`] said last, for those who wait for another number.
    revocations: watch::Sender<Option<u64>>,
    looking: Once,
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
    hash: [u8; 32],
    /// What was known of revocations before it was looked up.
    revocations: Option<u64>,
}

impl KeyRing {
    pub(crate) fn new(store: Store) -> Self {
        let (revocations, _) = watch::channel(store.keys().revocations());
        Self { store, good: RwLock::default(), revocations, looking: Once::new() }
    }

    /// The key that `secret` is; `None` if it is not a key, or a revoked one.
    pub(crate) async fn find(&self, secret: &SecretString) -> Result<Option<Key>, StoreError> {
        let hash = hash(secret.expose_secret());
        let revocations = self.store.keys().revocations();
        if let Some(key) = revocations.and_then(|revocations| self.remembered(&hash, revocations)) {
            return Ok(Some(key));
        }
        let Some(record) = self.store.keys().by_hash(&hash).await? else { return Ok(None) };
        // The index found it by comparing hashes, which reveals nothing about a key; this is the comparison that
        // decides, and it takes the same time wherever a difference is.
        if record.revoked || !bool::from(record.hash.ct_eq(&hash)) {
            return Ok(None);
        }
        let key = Key { id: record.id.into(), account: record.account.into(), hash, revocations };
        if revocations.is_some() {
            self.remember(&key);
        }
        Ok(Some(key))
    }

    /// Revokes a key of an account. Requests that it opened and that are still being answered end, too.
    pub(crate) async fn revoke(&self, account: &str, id: &str) -> Result<Revocation, StoreError> {
        let done = self.store.keys().revoke(Some(account), id).await?;
        self.look();
        Ok(done)
    }

    /// Waits until a key is revoked, by this process or by another; it may be already, since it was found.
    pub(crate) async fn revoked(self: Arc<Self>, key: Key) {
        let mut revocations = self.revocations.subscribe();
        self.keep_looking();
        let mut known = key.revocations;
        loop {
            let now = *revocations.borrow_and_update();
            // What cannot be looked up is not known to be good.
            if now != known && !matches!(self.store.keys().by_hash(&key.hash).await, Ok(Some(_))) {
                return;
            }
            known = now;
            if revocations.changed().await.is_err() {
                return;
            }
        }
    }

    fn look(&self) {
        let now = self.store.keys().revocations();
        self.revocations.send_if_modified(|known| std::mem::replace(known, now) != now);
    }

    /// Looks from time to time, from the first call on until this is dropped.
    fn keep_looking(self: &Arc<Self>) {
        self.looking.call_once(|| {
            let ring = Arc::downgrade(self);
            tokio::spawn(async move {
                while let Some(ring) = ring.upgrade() {
                    ring.look();
                    drop(ring);
                    tokio::time::sleep(LOOK).await;
                }
            });
        });
    }

    fn remembered(&self, hash: &[u8; 32], revocations: u64) -> Option<Key> {
        let good = self.good.read();
        let good = good.get(hash).filter(|good| good.checked.elapsed() < TRUST)?;
        (good.key.revocations == Some(revocations)).then(|| good.key.clone())
    }

    fn remember(&self, key: &Key) {
        let mut good = self.good.write();
        if good.len() >= REMEMBERED {
            good.retain(|_, good| good.key.revocations == key.revocations && good.checked.elapsed() < TRUST);
        }
        if good.len() < REMEMBERED || good.contains_key(&key.hash) {
            good.insert(key.hash, Good { key: key.clone(), checked: Instant::now() });
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
    use futures_util::FutureExt;

    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("data")).await.unwrap();
        (dir, store)
    }

    async fn make(store: &Store, account: &str) -> NewKey {
        create(store, &account.parse().unwrap(), &"first".parse().unwrap()).await.unwrap()
    }

    async fn account(ring: &KeyRing, secret: &SecretString) -> Option<Arc<str>> {
        ring.find(secret).await.unwrap().map(|key| key.account)
    }

    #[tokio::test]
    async fn a_key_opens_its_account_and_no_other_text_does() {
        let (_dir, store) = store().await;
        let (key, other) = (make(&store, "alice").await.secret, make(&store, "bob").await.secret);
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
        let made = make(&store, "alice").await;
        let key = made.secret.expose_secret();
        assert_eq!((key.len(), key.get(..4)), (44, Some("dcl_")));
        assert!(key[4..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let stored = &store.keys().list(Some("alice")).await.unwrap()[0];
        assert_eq!((stored.hash, &stored.id), (hash(key), &made.id));
        assert!(!format!("{stored:?}{made:?}{}", stored.masked).contains(&key[8..40]));
    }

    #[tokio::test]
    async fn a_revoked_key_opens_nothing_any_more_whoever_revoked_it() {
        let (dir, store) = store().await;
        let (first, second, kept) =
            (make(&store, "alice").await, make(&store, "alice").await, make(&store, "alice").await);
        let ring = Arc::new(KeyRing::new(store));
        // Found once, all of them are remembered.
        for key in [&first, &second, &kept] {
            assert!(account(&ring, &key.secret).await.is_some());
        }
        assert_eq!(ring.revoke("bob", &first.id).await.unwrap(), Revocation::NoSuchKey);
        assert!(account(&ring, &first.secret).await.is_some());
        assert_eq!(ring.revoke("alice", &first.id).await.unwrap(), Revocation::Done);
        assert_eq!(account(&ring, &first.secret).await, None);

        let beside = Store::open_beside(&dir.path().join("data")).await.unwrap();
        assert!(account(&ring, &second.secret).await.is_some());
        beside.keys().revoke(None, &second.id).await.unwrap();
        assert_eq!(account(&ring, &second.secret).await, None);
        assert!(account(&ring, &kept.secret).await.is_some());
    }

    #[tokio::test]
    async fn whoever_uses_a_key_for_long_learns_that_it_was_revoked_and_nobody_else_does() {
        let (dir, store) = store().await;
        let (here, beside, kept) =
            (make(&store, "alice").await, make(&store, "alice").await, make(&store, "alice").await);
        let ring = Arc::new(KeyRing::new(store));
        let found = async |key: &NewKey| ring.find(&key.secret).await.unwrap().unwrap();
        let (first, second) = (found(&here).await, found(&beside).await);
        let (first, second) = (Arc::clone(&ring).revoked(first), Arc::clone(&ring).revoked(second));
        let mut third = Box::pin(Arc::clone(&ring).revoked(found(&kept).await));
        assert_eq!((&mut third).now_or_never(), None);
        ring.revoke("alice", &here.id).await.unwrap();
        first.await;
        let other_process = Store::open_beside(&dir.path().join("data")).await.unwrap();
        other_process.keys().revoke(None, &beside.id).await.unwrap();
        second.await;
        assert_eq!(third.now_or_never(), None);
    }
}
