//! How many sandboxes an account can have at a time.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::{Manager, living::State};
use crate::error::SandboxError;

/// Sandboxes that are asked for and not among the others yet, by account.
pub(super) type Admissions = Mutex<HashMap<String, u32>>;

/// A place for a sandbox that is being made. It is free again when this is dropped.
pub(super) struct Admission {
    account: String,
    admissions: Arc<Admissions>,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut admissions = self.admissions.lock();
        if let Some(count) = admissions.get_mut(&self.account) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                admissions.remove(&self.account);
            }
        }
    }
}

impl Manager {
    /// A place for one more sandbox of an account, until it is among those that live.
    ///
    /// # Errors
    /// [`SandboxError::Limit`] when the account has as many as it can have.
    pub(super) fn admit(&self, account: &str) -> Result<Admission, SandboxError> {
        let most = self.inner.config.account_sandboxes;
        let mut admissions = self.inner.admissions.lock();
        let living = self.inner.living.lock();
        let present =
            living.values().filter(|living| living.state() != State::Killed && living.belongs_to(account));
        let asked = admissions.get(account).copied().unwrap_or(0);
        let count = u32::try_from(present.count()).unwrap_or(u32::MAX).saturating_add(asked);
        if count >= most {
            return Err(SandboxError::Limit(format!(
                "this account has {most} sandboxes, and can have no more"
            )));
        }
        *admissions.entry(account.to_owned()).or_default() += 1;
        Ok(Admission { account: account.to_owned(), admissions: Arc::clone(&self.inner.admissions) })
    }
}
