//! Accounts: who owns sandboxes, and the keys that speak for them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{FieldError, Timestamp};

/// The name of an account: 1 to 64 letters, digits, `-` and `_`, a letter or digit first.
///
/// It is what clients call an owner id, and fits into a path as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountName(String);

/// The text is not the name of an account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of an account: 1 to 64 letters, digits, - and _, a letter or digit first")]
pub struct InvalidAccountName(String);

impl AccountName {
    const LONGEST: usize = 64;

    /// The account of whoever runs the daemon: the first one, and the only one that sees numbers of the whole service.
    pub fn operator() -> Self {
        Self("local".to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountName {
    type Err = InvalidAccountName;

    fn from_str(text: &str) -> Result<Self, InvalidAccountName> {
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let valid = text.len() <= Self::LONGEST
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(usual);
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidAccountName(text.to_owned())) }
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an API key is for, for people: 1 to 100 characters, none of them a control character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(String);

/// The text is not the name of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 100 characters, and no control characters")]
pub struct InvalidKeyName;

impl KeyName {
    const LONGEST: usize = 100;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = InvalidKeyName;

    fn from_str(text: &str) -> Result<Self, InvalidKeyName> {
        let text = text.trim();
        let length = text.chars().count();
        let valid = (1..=Self::LONGEST).contains(&length) && !text.contains(char::is_control);
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidKeyName) }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose the API key of the request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Me {
    /// The name of the account.
    pub owner_id: String,
    /// The id of the key.
    pub key_id: String,
}

/// An account, in both forms that clients read: its fields, and the same in `account`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// What the account is.
    #[serde(flatten)]
    pub account: AccountInfo,
    /// What is in its wallet.
    #[serde(flatten)]
    pub wallet: Balances,
    /// The same as beside it.
    #[serde(rename = "account")]
    pub nested: AccountInfo,
}

impl Account {
    /// An account in both forms. Its wallet is empty.
    pub fn new(account: AccountInfo) -> Self {
        Self { nested: account.clone(), account, wallet: Balances::default() }
    }
}

/// What an account is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountInfo {
    /// Its name.
    pub owner_id: String,
    /// Always empty: accounts of an installation have no address.
    pub email: String,
    /// Always `self-hosted`.
    pub tier: String,
    /// When its first key was made.
    pub created_at: Timestamp,
}

/// The tier of every account of an installation.
pub const TIER: &str = "self-hosted";

/// Amounts of money in millionths of a dollar. All are 0: nothing is charged for on one's own machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Balances {
    /// 0.
    pub sandbox_free_micros: u64,
    /// 0.
    pub guardrails_free_micros: u64,
    /// 0.
    pub balance_micros: u64,
}

/// A wallet, in both forms that clients read. It is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Wallet {
    /// The amounts.
    #[serde(flatten)]
    pub balances: Balances,
    /// The same as beside it.
    pub wallet: Balances,
}

/// Deposits, in both forms that clients read. There never are any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deposits {
    /// None.
    #[schema(value_type = Vec<Object>)]
    pub deposits: [(); 0],
    /// None.
    #[schema(value_type = Vec<Object>)]
    pub entries: [(); 0],
    /// 0.
    pub total: u64,
    /// False.
    pub has_more: bool,
}

/// A key to make.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct CreateApiKey {
    /// What it is for, for people: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
}

impl CreateApiKey {
    /// The name, if it is one.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] otherwise.
    pub fn name(&self) -> Result<KeyName, FieldError> {
        self.name.parse().map_err(|error: InvalidKeyName| FieldError::invalid("name", error))
    }
}

/// A key that was made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyCreated {
    /// Its id.
    pub key_id: String,
    /// The key. It is shown this once.
    pub api_key: String,
    /// What it is for.
    pub name: String,
}

/// The keys of an account, revoked ones too, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKeys {
    /// The keys.
    pub api_keys: Vec<ApiKey>,
}

/// A key as it can be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    /// Its id.
    pub key_id: String,
    /// What it is for.
    pub name: String,
    /// Its first and last characters, to recognise it by.
    pub masked_key: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether it no longer opens anything.
    pub revoked: bool,
}

/// A key was to be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyRevoked {
    /// False if it had been revoked before.
    pub revoked: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_name_of_an_account_fits_into_a_path_as_it_is() {
        for name in ["local", "a", "Team-7_b", "0", &"x".repeat(64)] {
            assert_eq!(name.parse::<AccountName>().unwrap().as_str(), name);
        }
        for name in ["", "-a", "_a", "a/b", "..", "a b", "ä", "a\n", "a%2F", &"x".repeat(65)] {
            assert!(name.parse::<AccountName>().is_err(), "{name:?}");
        }
        assert_eq!(AccountName::operator().as_str().parse(), Ok(AccountName::operator()));
    }

    #[test]
    fn the_name_of_a_key_is_a_line_of_text() {
        for (given, name) in [("ci", "ci"), (" nightly build ", "nightly build"), ("schlüssel", "schlüssel")]
        {
            assert_eq!(given.parse::<KeyName>().unwrap().as_str(), name);
        }
        assert!("ü".repeat(100).parse::<KeyName>().is_ok());
        for name in ["", "  ", "a\nb", "a\u{1b}[2J", &"x".repeat(101)] {
            assert!(name.parse::<KeyName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_account_and_a_wallet_have_both_forms() {
        let created_at = Timestamp("2026-03-01T12:00:00Z".parse().unwrap());
        let info = AccountInfo {
            owner_id: "acme".to_owned(),
            email: String::new(),
            tier: TIER.to_owned(),
            created_at,
        };
        let fields = json!({
            "owner_id": "acme", "email": "", "tier": "self-hosted", "created_at": "2026-03-01T12:00:00.000000+00:00"
        });
        let amounts = json!({"sandbox_free_micros": 0, "guardrails_free_micros": 0, "balance_micros": 0});
        let account = serde_json::to_value(Account::new(info)).unwrap();
        assert_eq!(account["account"], fields);
        for (name, value) in fields.as_object().unwrap().iter().chain(amounts.as_object().unwrap()) {
            assert_eq!(&account[name], value);
        }
        let wallet = serde_json::to_value(Wallet::default()).unwrap();
        assert_eq!(wallet["wallet"], amounts);
        assert_eq!(wallet["balance_micros"], 0);
    }
}
