//! Names of sandboxes, and the ranges of user ids that they run as.

use std::{collections::BTreeSet, fmt, str::FromStr};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// How many user and group ids a sandbox has: what 16 bits hold, so every usual id exists inside.
pub const IDS_PER_SANDBOX: u32 = 1 << 16;

/// The name of a sandbox: `sbx-` and eight lower-case letters or digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// The text is not the name of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a sandbox id: sbx- and eight lower-case letters or digits")]
pub struct InvalidSandboxId(String);

impl SandboxId {
    const PREFIX: &str = "sbx-";
    const LENGTH: usize = 8;
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

    /// A new, random one.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        // 252 is the largest multiple of 36 in a byte; the rest would make some characters likelier.
        let mut id = String::from(Self::PREFIX);
        while id.len() < Self::PREFIX.len() + Self::LENGTH {
            let byte = getrandom::u32()?.to_le_bytes()[0];
            if let (true, Some(&character)) = (byte < 252, Self::ALPHABET.get(usize::from(byte % 36))) {
                id.push(char::from(character));
            }
        }
        Ok(Self(id))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = InvalidSandboxId;

    fn from_str(text: &str) -> Result<Self, InvalidSandboxId> {
        let valid = |rest: &str| {
            rest.len() == Self::LENGTH && rest.bytes().all(|byte| Self::ALPHABET.contains(&byte))
        };
        match text.strip_prefix(Self::PREFIX) {
            Some(rest) if valid(rest) => Ok(Self(text.to_owned())),
            _ => Err(InvalidSandboxId(text.to_owned())),
        }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = InvalidSandboxId;

    fn try_from(text: String) -> Result<Self, InvalidSandboxId> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Gives every living sandbox a range of ids that no other living one has.
#[derive(Debug)]
pub(crate) struct IdPool {
    base: u32,
    ranges: u32,
    taken: Mutex<BTreeSet<u32>>,
}

impl IdPool {
    /// A pool of `ranges` ranges from `base` on.
    pub(crate) fn new(base: u32, ranges: u32) -> Self {
        let ranges = ranges.min((u32::MAX - base) / IDS_PER_SANDBOX);
        Self { base, ranges, taken: Mutex::default() }
    }

    /// The first id of a free range, or `None` when all are taken.
    pub(crate) fn take(&self) -> Option<u32> {
        let mut taken = self.taken.lock();
        let free = (0..self.ranges).find(|range| !taken.contains(range))?;
        taken.insert(free);
        Some(self.base + free * IDS_PER_SANDBOX)
    }

    /// Marks the range of a sandbox that lives already. `false` when another has it or the pool does not.
    pub(crate) fn claim(&self, first_id: u32) -> bool {
        self.range_of(first_id).is_some_and(|range| self.taken.lock().insert(range))
    }

    /// Makes a range free again; its sandbox has no process left.
    pub(crate) fn release(&self, first_id: u32) {
        if let Some(range) = self.range_of(first_id) {
            self.taken.lock().remove(&range);
        }
    }

    fn range_of(&self, first_id: u32) -> Option<u32> {
        let offset = first_id.checked_sub(self.base)?;
        let range = offset / IDS_PER_SANDBOX;
        (offset.is_multiple_of(IDS_PER_SANDBOX) && range < self.ranges).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_is_a_valid_id_and_no_two_are_alike() {
        let ids: BTreeSet<_> = (0..1000).map(|_| SandboxId::random().expect("random bytes")).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.as_str().parse::<SandboxId>().as_ref() == Ok(id)));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in
            ["", "sbx-", "sbx-1234567", "sbx-123456789", "sbx-ABCDEFGH", "sbx-../../..", "snap-12345678"]
        {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_two_living_sandboxes_share_user_ids() {
        let pool = IdPool::new(1 << 20, 3);
        let all: BTreeSet<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), 3);
        let second = (1 << 20) + IDS_PER_SANDBOX;
        assert!(!pool.claim(second));
        pool.release(second);
        assert!(pool.claim(second));
        assert!(!pool.claim(second + 1), "not the beginning of a range");
        assert!(!pool.claim(5), "outside of the pool");
    }
}
