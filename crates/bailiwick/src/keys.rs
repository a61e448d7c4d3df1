//! `bailiwick keys`: API keys of all accounts, on the machine itself.

use anyhow::{Context, Result, anyhow};
use api::AccountName;
use comfy_table::{Table, presets};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use server::keys::KeyError;
use store::{Revocation, Store};

use crate::{
    cli::{CreateKeyArgs, KeysCommand},
    config::{Config, DataArgs, ServeArgs},
    exit::{self, BadInput},
    printable::printable,
};

/// Runs one of the commands. A daemon may be running meanwhile, and knows at once what they have done.
pub(crate) async fn run(data: &DataArgs, command: &KeysCommand) -> Result<u8> {
    let config = Config::load(data, &ServeArgs::default())?;
    let store = Store::open_beside(&config.data_dir)
        .await
        .with_context(|| format!("opening the store in {}", config.data_dir.display()))?;
    match command {
        KeysCommand::Create(args) => create(&store, args).await?,
        KeysCommand::Ls { account, json } => list(&store, account.as_ref(), *json).await?,
        KeysCommand::Revoke { id, json } => revoke(&store, id, *json).await?,
    }
    Ok(exit::OK)
}

async fn create(store: &Store, args: &CreateKeyArgs) -> Result<()> {
    let CreateKeyArgs { account, name, json } = args;
    let made = match server::keys::create(store, account, name).await {
        Err(error @ KeyError::TooMany { .. }) => return Err(anyhow!(BadInput(error.to_string()))),
        other => other.context("creating a key")?,
    };
    let key = made.secret.expose_secret();
    if *json {
        let made = json!({
            "key_id": made.id, "api_key": key, "name": name.as_str(), "account": account.as_str()
        });
        anstream::println!("{made}");
    } else {
        anstream::println!("{key}");
    }
    Ok(())
}

async fn list(store: &Store, account: Option<&AccountName>, json: bool) -> Result<()> {
    let keys = store.keys().list(account.map(AccountName::as_str)).await.context("listing the keys")?;
    if json {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| {
                json!({
                    "key_id": key.id, "account": key.account, "name": key.name, "masked_key": key.masked,
                    "created_at": key.created_at.to_string(), "revoked": key.revoked,
                })
            })
            .collect();
        anstream::println!("{}", Value::from(keys));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["ID", "ACCOUNT", "NAME", "KEY", "CREATED", "STATE"]);
    for key in keys {
        let state = if key.revoked { "revoked" } else { "in force" };
        let created = key.created_at.strftime("%Y-%m-%d %H:%M").to_string();
        let name = printable(&key.name);
        table.add_row([key.id, key.account, name, key.masked, created, state.to_owned()]);
    }
    anstream::println!("{table}");
    Ok(())
}

async fn revoke(store: &Store, id: &str, json: bool) -> Result<()> {
    let revoked = match store.keys().revoke(None, id).await.context("revoking the key")? {
        Revocation::Done => true,
        Revocation::Before => false,
        Revocation::NoSuchKey => {
            let message = format!("there is no key {id:?}; see `bailiwick keys ls`");
            return Err(anyhow!(BadInput(message)));
        }
    };
    if json {
        anstream::println!("{}", json!({ "key_id": id, "revoked": revoked }));
    } else {
        anstream::println!("{}", if revoked { "revoked" } else { "was revoked before" });
    }
    Ok(())
}
