//! The commands about API keys.

use api::{AccountName, KeyName};
use clap::{Args, Subcommand};

/// Commands about API keys. They work beside a running daemon and without one.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Create a key and print it; it is stored hashed and cannot be shown again
    Create(CreateKeyArgs),
    /// List the keys, masked
    Ls {
        /// Only of this account
        #[arg(long, value_name = "NAME")]
        account: Option<AccountName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key by its id; it opens nothing from then on, and streams that it opened break off
    Revoke {
        /// The id, as `ls` shows it
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Options of `bailiwick keys create`.
#[derive(Args, Debug)]
pub(crate) struct CreateKeyArgs {
    /// The account that the key speaks for, which begins with its first key: letters, digits, - and _
    #[arg(long, value_name = "NAME", default_value_t = AccountName::operator())]
    pub account: AccountName,
    /// What the key is for
    #[arg(long, default_value = "cli")]
    pub name: KeyName,
    /// Print JSON, with the id of the key
    #[arg(long)]
    pub json: bool,
}
