//! Ratchet tokens: what may narrow the policy of one sandbox, and nothing else.
//!
//! A token is 40 random base-62 digits after `rat_`, and like an API key it is stored as a hash only. A sandbox has at
//! most one. It is looked up for every request, so that it ends the moment it is revoked.

use std::sync::Arc;

use jiff::Timestamp;
use sandbox::{SandboxId, State};
use secrecy::{ExposeSecret, SecretString};
use store::{RatchetRecord, Store, StoreError};
use subtle::ConstantTimeEq;

use crate::{
    error::ApiError,
    keys::{hash, random_digits},
};

/// What every token begins with, and no API key does.
pub(crate) const PREFIX: &str = "rat_";
const DIGITS: usize = 40;

/// A token that was found good.
#[derive(Clone, Debug)]
pub(crate) struct Ratchet {
    pub(crate) id: String,
    /// The only sandbox it is about.
    pub(crate) sandbox: SandboxId,
    /// The account of that.
    pub(crate) account: Arc<str>,
}

/// Makes the token of a sandbox, in the place of the one it has: its id, and the token, which cannot be shown again.
pub(crate) async fn create(store: &Store, sandbox: &SandboxId) -> Result<(String, SecretString), ApiError> {
    let random = |count| random_digits(count).map_err(|error| ApiError::internal(&error));
    let (id, secret) = (format!("rat-{}", random(12)?), format!("{PREFIX}{}", random(DIGITS)?));
    let record = RatchetRecord {
        id: id.clone(),
        sandbox_id: sandbox.to_string(),
        hash: hash(&secret),
        created_at: Timestamp::now(),
    };
    store.ratchets().put(&record).await?;
    Ok((id, SecretString::from(secret)))
}

/// The token that `secret` is; `None` if it is none, or its sandbox has ended.
pub(crate) async fn find(store: &Store, secret: &SecretString) -> Result<Option<Ratchet>, StoreError> {
    let secret = secret.expose_secret();
    if !secret.starts_with(PREFIX) {
        return Ok(None);
    }
    let hash = hash(secret);
    let Some((record, account)) = store.ratchets().by_hash(&hash, State::Killed.as_str()).await? else {
        return Ok(None);
    };
    // As with API keys, this comparison is the one that decides.
    let sandbox = record.sandbox_id.parse().ok().filter(|_| bool::from(record.hash.ct_eq(&hash)));
    Ok(sandbox.map(|sandbox| Ratchet { id: record.id, sandbox, account: account.into() }))
}
