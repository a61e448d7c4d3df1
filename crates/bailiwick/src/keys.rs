//! `bailiwick keys`: API keys, on the machine itself.

use anyhow::{Context, Result, anyhow};
use comfy_table::{Table, presets};
use secrecy::ExposeSecret;
use store::Store;

use crate::{
    cli::KeysCommand,
    config::{Config, DataArgs, ServeArgs},
    exit::{self, BadInput},
};

/// The account of keys that are made on the machine.
pub(crate) const ACCOUNT: &str = "local";

/// Runs one of the commands. A daemon may be running meanwhile.
pub(crate) async fn run(data: &DataArgs, command: &KeysCommand) -> Result<u8> {
    let config = Config::load(data, &ServeArgs::default())?;
    let store = Store::open_beside(&config.data_dir)
        .await
        .with_context(|| format!("opening the store in {}", config.data_dir.display()))?;
    match command {
        KeysCommand::Create { name } => {
            let key = server::keys::create(&store, ACCOUNT, name).await.context("creating a key")?;
            anstream::println!("{}", key.expose_secret());
        }
        KeysCommand::Ls { json } => list(&store, *json).await?,
        KeysCommand::Revoke { id } => {
            let revoked = store.keys().revoke(ACCOUNT, id).await.context("revoking the key")?;
            if !revoked {
                return Err(anyhow!(BadInput(format!(
                    "there is no key {id:?} that is in force; see `bailiwick keys ls`"
                ))));
            }
        }
    }
    Ok(exit::OK)
}

async fn list(store: &Store, json: bool) -> Result<()> {
    let keys = store.keys().list(ACCOUNT).await.context("listing the keys")?;
    if json {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| {
                serde_json::json!({
                    "key_id": key.id, "name": key.name, "masked_key": key.masked,
                    "created_at": key.created_at.to_string(), "revoked": key.revoked,
                })
            })
            .collect();
        anstream::println!("{}", serde_json::Value::from(keys));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["ID", "NAME", "KEY", "CREATED", "STATE"]);
    for key in keys {
        let state = if key.revoked { "revoked" } else { "in force" };
        let created = key.created_at.strftime("%Y-%m-%d %H:%M").to_string();
        table.add_row([key.id, key.name, key.masked, created, state.to_owned()]);
    }
    anstream::println!("{table}");
    Ok(())
}
