//! `bailiwick policy get`, `set` and `ratchet`: the policy of a daemon's sandbox.

use std::{
    fs::File,
    io::{Read, stdin},
    path::Path,
};

use anyhow::{Context, Result, anyhow};
use api::{Network, Sandbox};
use comfy_table::{Table, presets};
use owo_colors::OwoColorize;
use serde_json::json;

use crate::{
    cli::{GetPolicyArgs, PolicySource, RatchetArgs, SetPolicyArgs},
    exit::{self, BadInput},
    printable::printable,
    remote::{self, ApiFailure},
};

/// The longest policy file, in bytes: no daemon takes a longer request.
const LONGEST_FILE: u64 = 10 << 20;

/// Prints the policy of a sandbox.
pub(crate) async fn get(args: &GetPolicyArgs) -> Result<u8> {
    let client = remote::client(&args.api)?;
    let network = policy_of(&client.get(&args.id).await.map_err(ApiFailure)?)?;
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&network)?);
    } else {
        anstream::println!("{}", table(&network)?);
    }
    Ok(exit::OK)
}

/// Replaces the policy of a sandbox.
pub(crate) async fn set(args: &SetPolicyArgs) -> Result<u8> {
    let network = args.policy.network()?.ok_or_else(|| {
        anyhow!(BadInput(
            "say what it may reach: --allow-out, --deny-out, --policy FILE or --open".to_owned()
        ))
    })?;
    let client = remote::client(&args.api)?;
    let sandbox = client.set_network(&args.id, &network).await.map_err(ApiFailure)?;
    let network = policy_of(&sandbox)?;
    if args.json {
        let warnings = &sandbox.warnings;
        let answer = json!({ "sandbox_id": sandbox.sandbox_id, "network": network, "warnings": warnings });
        anstream::println!("{answer}");
    } else {
        anstream::println!("{}", table(&network)?);
        warn(&sandbox.warnings);
    }
    Ok(exit::OK)
}

/// Makes or revokes the ratchet token of a sandbox.
pub(crate) async fn ratchet(args: &RatchetArgs) -> Result<u8> {
    let client = remote::client(&args.api)?;
    if args.revoke {
        let revoked = client.revoke_ratchet(&args.id).await.map_err(ApiFailure)?;
        if args.json {
            anstream::println!("{}", json!({ "revoked": revoked }));
        } else {
            anstream::println!("{}", if revoked { "revoked" } else { "there was none" });
        }
        return Ok(exit::OK);
    }
    let ratchet = client.create_ratchet(&args.id).await.map_err(ApiFailure)?;
    if args.json {
        anstream::println!("{}", serde_json::to_string(&ratchet)?);
    } else {
        anstream::println!("{}", ratchet.token);
    }
    Ok(exit::OK)
}

impl PolicySource {
    /// The policy that is meant; `None` if none of the options was given.
    ///
    /// # Errors
    /// [`BadInput`] if the file is no policy, has a field that means nothing, or says nothing.
    pub(crate) fn network(&self) -> Result<Option<Network>> {
        if let Some(path) = &self.policy {
            return read(path).map(Some);
        }
        let network = Network {
            allow_out: self.entries.allow_out.clone(),
            deny_out: self.entries.deny_out.clone(),
            ..Network::default()
        };
        Ok((self.open || !network.is_empty()).then_some(network))
    }
}

fn read(path: &Path) -> Result<Network> {
    let bad = |problem: String| anyhow!(BadInput(format!("--policy {}: {problem}", path.display())));
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        stdin().take(LONGEST_FILE + 1).read_to_end(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut text))
    };
    read.map_err(|error| bad(error.to_string()))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > LONGEST_FILE) {
        return Err(bad(format!("it is longer than {LONGEST_FILE} bytes")));
    }
    let network: Network = api::from_json(&text).map_err(|error| bad(error.to_string()))?;
    if let Some(field) = network.unknown.keys().next() {
        return Err(bad(format!("{field}: unknown field; the lists are allow_out and deny_out")));
    }
    if network.allow_out.is_empty() && network.deny_out.is_empty() {
        return Err(bad(
            "it has no entries, which permits the public internet; if that is meant, give --open".to_owned(),
        ));
    }
    Ok(network)
}

/// The policy in force; of a sandbox that was given none, one without entries.
fn policy_of(sandbox: &Sandbox) -> Result<Network> {
    let network = sandbox.network.clone().map(serde_json::from_value).transpose();
    Ok(network.context("reading the policy that the daemon sent")?.unwrap_or_default())
}

/// Prints what is probably not meant.
pub(crate) fn warn(warnings: &[String]) {
    for warning in warnings {
        anstream::eprintln!("{} {}", "warning:".yellow().bold(), printable(warning));
    }
}

fn table(network: &Network) -> Result<Table> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["LIST", "INDEX", "ENTRY"]);
    for (list, entries) in [("allow_out", &network.allow_out), ("deny_out", &network.deny_out)] {
        for (index, entry) in entries.iter().enumerate() {
            table.add_row([list.to_owned(), index.to_string(), printable(entry)]);
        }
    }
    if table.is_empty() {
        table.add_row(["default", "", "the public internet is permitted"]);
    }
    let others = json!({
        "allow_public_traffic": network.allow_public_traffic, "mask_request_host": network.mask_request_host,
        "ech": network.ech, "refused_names": network.refused_names,
    });
    let others = others.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    for (name, value) in others {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        table.add_row([name.clone(), String::new(), printable(&value)]);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::PolicyArgs;

    fn from_file(content: &str) -> Result<Option<Network>> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("policy.json");
        std::fs::write(&file, content)?;
        PolicySource { policy: Some(file), ..PolicySource::default() }.network()
    }

    #[test]
    fn a_policy_comes_from_entries_or_a_file_and_is_never_open_by_accident() {
        let entries = PolicyArgs { allow_out: vec!["a.test".to_owned()], deny_out: Vec::new() };
        let given = PolicySource { entries, ..PolicySource::default() }.network().unwrap().unwrap();
        assert_eq!(given.allow_out, ["a.test"]);
        assert!(PolicySource::default().network().unwrap().is_none());
        let open = PolicySource { open: true, ..PolicySource::default() }.network().unwrap().unwrap();
        assert!(open.is_empty());
        let file = from_file(r#"{"allow_out": ["a.test"], "ech": "permit"}"#).unwrap().unwrap();
        assert_eq!((file.allow_out, file.ech), (vec!["a.test".to_owned()], Some(api::EchMode::Permit)));
        for (content, named) in [
            ("", "no entries"),
            ("{}", "no entries"),
            (r#"{"ech": "permit"}"#, "no entries"),
            (r#"{"allow_out": ["a.test"], "denyout": ["*"]}"#, "denyout"),
            (r#"{"allow_out": [5]}"#, "allow_out[0]"),
            ("[]", "body"),
        ] {
            let error = from_file(content).unwrap_err();
            assert_eq!(exit::code_of(&error), exit::BAD_INPUT, "{content}");
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
