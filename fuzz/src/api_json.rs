//! A request means what its JSON says, and what is written in an answer is read back.

use std::fmt::Debug;

use api::{
    AuditPage, CommandExit, CreateSandbox, ErrorBody, FieldError, KillMany, KillManyResults, MakeDirectory,
    Network, Rename, RunCommand, Sandbox, SandboxList, Security, SecurityPolicy, SetTimeout, StdinData,
    Timestamp, WriteFile, WriteFiles, from_json, parse_metadata_filter,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub fn check(bytes: &[u8]) {
    check_create(bytes);
    let _: Option<KillMany> = check_request(bytes);
    let _: Option<MakeDirectory> = check_request(bytes);
    let _: Option<Rename> = check_request(bytes);
    let _: Option<SetTimeout> = check_request(bytes);
    let _: Option<StdinData> = check_request(bytes);
    let _: Option<WriteFile> = check_request(bytes);
    let _: Option<WriteFiles> = check_request(bytes);
    if let Some(command) = check_request::<RunCommand>(bytes)
        && command.check().is_ok()
    {
        assert!(!command.cmd.contains('\0') && is_environment(&command.envs));
    }
    if let Some(policy) = check_request::<SecurityPolicy>(bytes) {
        let _ = (policy.audit_enabled(), policy.refuse_unimplemented());
    }
    if let Some(network) = check_request::<Network>(bytes) {
        check_network(&network, parsed(bytes).as_ref());
    }

    check_answer::<AuditPage>(bytes);
    check_answer::<CommandExit>(bytes);
    check_answer::<ErrorBody>(bytes);
    check_answer::<KillManyResults>(bytes);
    check_answer::<Sandbox>(bytes);
    check_answer::<SandboxList>(bytes);
    check_answer::<Timestamp>(bytes);

    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(filter) = parse_metadata_filter(text)
    {
        let written = serde_json::to_string(&filter).unwrap();
        assert_eq!(parse_metadata_filter(&written), Ok(filter));
    }
}

/// What another reader of JSON, without our types, makes of it.
fn parsed(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Value>(bytes).ok().filter(Value::is_object)
}

/// Reads a request, and again from the JSON in another spelling.
fn check_request<T: DeserializeOwned + Debug>(bytes: &[u8]) -> Option<T> {
    let request = from_json::<T>(bytes);
    if let Err(FieldError::Invalid { field, problem }) = &request {
        assert!(!field.is_empty() && !problem.is_empty());
    }
    let request = request.ok()?;
    // What is not looked at is not checked either: there, another reader may see no JSON.
    if let Some(value) = parsed(bytes) {
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let again = from_json::<T>(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(format!("{request:?}"), format!("{again:?}"), "{text}");
        }
    }
    Some(request)
}

fn check_create(bytes: &[u8]) {
    let Some(create) = check_request::<CreateSandbox>(bytes) else { return };
    let value = parsed(bytes);
    if create.check().is_ok() {
        assert!(is_environment(&create.envs));
        assert!(create.resources.is_none() && create.volumes.is_empty() && create.vault_refs.is_empty());
    }
    if let Some(network) = &create.network {
        check_network(network, value.as_ref().and_then(|value| value.get("network")));
    }
    if let Some(Ok((policy, source))) = create.security.as_ref().map(Security::policy)
        && let Some(network) = &policy.network
    {
        check_network(network, source.get("network"));
    }
}

fn is_environment(envs: &std::collections::BTreeMap<String, String>) -> bool {
    envs.iter().all(|(name, value)| {
        !name.is_empty() && !name.contains('=') && !name.contains('\0') && !value.contains('\0')
    })
}

/// No entry is lost, added or changed, and none goes from one list to the other.
fn check_network(network: &Network, value: Option<&Value>) {
    if let Some(value) = value {
        let list = |name: &str| -> Vec<String> {
            let entries = value.get(name).and_then(Value::as_array).into_iter().flatten();
            entries
                .map(|entry| entry.as_str().expect("an entry that is no text is refused").to_owned())
                .collect()
        };
        assert_eq!(network.allow_out, list("allow_out"));
        assert_eq!(network.deny_out, list("deny_out"));
    }
    if network.check().is_ok() && network.is_empty() {
        assert!(network.unknown.is_empty(), "a misspelt list permits everything");
    }
    let _ = network.warnings();
    let written = serde_json::to_vec(network).unwrap();
    let again = from_json::<Network>(&written).unwrap();
    assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    assert_eq!((&again.allow_out, &again.deny_out), (&network.allow_out, &network.deny_out));
}

fn check_answer<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(answer) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_string(&answer).unwrap();
    let again: T = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{written}: {error}"));
    // Not the same value: times lose what is below a microsecond.
    assert_eq!(serde_json::to_string(&again).unwrap(), written);
}
