//! The network policy of a request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::IgnoredAny};
use utoipa::ToSchema;

use crate::{
    FieldError,
    lenient::null_is_default,
    shortened::{self, shortened},
};

/// What a sandbox may reach: the `network` of a create request, or of a security policy.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Entries that are permitted: an address, a CIDR, a host name, `*.domain`, `~regex`, each with an optional
    /// `:port`. They beat `deny_out`, whatever the order. With any entry here, everything else is refused.
    #[serde(default, deserialize_with = "null_is_default")]
    pub allow_out: Vec<String>,
    /// Entries that are refused, of the same kinds. `0.0.0.0/0`, `::/0`, `*` and `ALL_TRAFFIC` mean everything.
    #[serde(default, deserialize_with = "null_is_default")]
    pub deny_out: Vec<String>,
    /// Whether ports inside the sandbox may be reached through the API. Default true; says nothing about egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Replaces the `Host` header of outbound HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<MaskRequestHost>,
    /// What to do with Encrypted Client Hello. Default `refuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ech: Option<EchMode>,
    /// How a name that the policy does not permit is answered. Default `sink`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_names: Option<RefusedNames>,
    /// Fields that mean nothing, kept so that they can be reported.
    #[serde(flatten, skip_serializing)]
    #[schema(ignore)]
    pub unknown: BTreeMap<String, Ignored>,
}

impl Network {
    /// The most bytes of all entries together.
    pub const BYTES: usize = 1 << 20;
    /// Of how many unknown fields the names are told.
    const WARNED: usize = 10;

    /// Whether the object says nothing at all, as in `"network": {}`, which counts as absent.
    pub fn is_empty(&self) -> bool {
        self.allow_out.is_empty()
            && self.deny_out.is_empty()
            && self.allow_public_traffic.is_none()
            && self.mask_request_host.is_none()
            && self.ech.is_none()
            && self.refused_names.is_none()
    }

    /// Refuses an unknown field where ignoring it would leave the policy without an entry, which permits
    /// everything: it is a misspelt `allow_out` more likely than not.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] naming the unknown field, below no prefix.
    pub fn check(&self) -> Result<(), FieldError> {
        match self.unknown.keys().next() {
            Some(name) if self.allow_out.is_empty() && self.deny_out.is_empty() => {
                let problem = "unknown field, and without it the policy permits everything; \
                               the lists are allow_out and deny_out";
                Err(FieldError::invalid(name, problem))
            }
            _ => Ok(()),
        }
    }

    /// Refuses more text than is kept for a sandbox: 1 MiB of entries together.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] naming the first list that is over it, below no prefix.
    pub fn check_size(&self) -> Result<(), FieldError> {
        let mut bytes = 0;
        for (list, entries) in [("allow_out", &self.allow_out), ("deny_out", &self.deny_out)] {
            bytes += entries.iter().map(String::len).sum::<usize>();
            if bytes > Self::BYTES {
                let problem =
                    format!("the entries of the policy are longer than {} bytes together", Self::BYTES);
                return Err(FieldError::invalid(list, problem));
            }
        }
        Ok(())
    }

    /// What was accepted and has no effect, in words: of unknown fields the first ten, with the beginning of their names.
    pub fn warnings(&self) -> Vec<String> {
        let name = |name| shortened(name, shortened::FIELD);
        let unknown = self.unknown.keys().map(|field| format!("{}: unknown field, ignored", name(field)));
        let more = self.unknown.len().checked_sub(Self::WARNED).filter(|more| *more > 0);
        let more = more.map(|more| format!("{more} more unknown fields, ignored"));
        let unknown = unknown.take(Self::WARNED).chain(more);
        let mask = matches!(self.mask_request_host, Some(MaskRequestHost::Flag(true)))
            .then(|| "mask_request_host: true names no host, nothing is replaced".to_owned());
        unknown.chain(mask).collect()
    }
}

/// A value that is not looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// The host to put into outbound requests. One client has a flag where the others have the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a host name or a boolean")]
pub enum MaskRequestHost {
    /// The host.
    Host(String),
    /// `false` replaces nothing. `true` names no host, so it replaces nothing either, with a warning.
    Flag(bool),
}

impl MaskRequestHost {
    /// The host, if one is named.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Host(host) if !host.is_empty() => Some(host),
            _ => None,
        }
    }
}

/// What to do with a TLS ClientHello that carries the Encrypted Client Hello extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EchMode {
    /// Refuse the connection.
    Refuse,
    /// Judge it by its outer name.
    Permit,
}

/// How an address query for a name that an allowlist does not permit is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefusedNames {
    /// With a sink address, where the connection is refused and recorded.
    Sink,
    /// With the code REFUSED.
    Refused,
    /// With the code NXDOMAIN.
    Nxdomain,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::from_json;

    fn parse(value: serde_json::Value) -> Result<Network, crate::FieldError> {
        from_json(value.to_string().as_bytes())
    }

    #[test]
    fn what_every_client_sends_is_read() {
        let python = parse(json!({"allow_out": ["a.example"], "deny_out": ["0.0.0.0/0"]})).unwrap();
        assert_eq!(python.allow_out, ["a.example"]);
        let javascript = parse(
            json!({"allow_out": [], "deny_out": null, "allow_public_traffic": false, "mask_request_host": "h"}),
        );
        let javascript = javascript.unwrap();
        assert_eq!(javascript.allow_public_traffic, Some(false));
        assert_eq!(javascript.mask_request_host.unwrap().host(), Some("h"));
        let go = parse(json!({"deny_out": ["*"], "mask_request_host": true})).unwrap();
        assert_eq!(go.mask_request_host.as_ref().unwrap().host(), None);
        assert_eq!(go.warnings(), ["mask_request_host: true names no host, nothing is replaced"]);
    }

    #[test]
    fn an_empty_object_says_nothing() {
        assert!(parse(json!({})).unwrap().is_empty());
        assert!(parse(json!({"allow_out": null})).unwrap().is_empty());
    }

    #[test]
    fn an_unknown_field_is_reported_and_refused_where_it_would_open_everything() {
        let kept = parse(json!({"deny_out": ["*"], "allowed": ["a.example"]})).unwrap();
        kept.check().unwrap();
        assert_eq!(kept.warnings(), ["allowed: unknown field, ignored"]);
        for open in [json!({"allowed": ["a.example"]}), json!({"allowed": [], "mask_request_host": "h"})] {
            let error = parse(open).unwrap().check().unwrap_err().to_string();
            assert!(error.starts_with("allowed: unknown field"), "{error}");
        }
    }

    #[test]
    fn what_is_said_of_unknown_fields_does_not_grow_with_them() {
        let long = "n".repeat(1 << 20);
        let error = parse(json!({(long.clone()): 1})).unwrap().check().unwrap_err().to_string();
        assert!(error.starts_with("nnn") && error.len() < 500, "{} bytes", error.len());
        let mut fields: serde_json::Map<_, _> = (0..50).map(|n| (format!("{n}{long}"), json!(1))).collect();
        fields.insert("deny_out".to_owned(), json!(["*"]));
        let warnings = parse(fields.into()).unwrap().warnings();
        assert_eq!(warnings.last().unwrap(), "40 more unknown fields, ignored");
        assert!(warnings.len() == 11 && warnings.concat().len() < 5000);
    }

    #[test]
    fn entries_are_refused_beyond_a_mebibyte_together_by_their_list() {
        let network = |allow: usize, deny: usize| Network {
            allow_out: vec!["a".repeat(1 << 10); allow],
            deny_out: vec!["a".repeat(1 << 10); deny],
            ..Network::default()
        };
        network(1024, 0).check_size().unwrap();
        network(512, 512).check_size().unwrap();
        for (over, list) in [(network(1025, 0), "allow_out: "), (network(512, 513), "deny_out: ")] {
            let error = over.check_size().unwrap_err().to_string();
            assert!(error.starts_with(list), "{error}");
        }
    }

    #[test]
    fn a_wrong_type_is_refused_by_name() {
        for (value, field) in [
            (json!({"allow_out": "a.example"}), "allow_out"),
            (json!({"allow_out": ["a.example", null]}), "allow_out[1]"),
            (json!({"deny_out": [1]}), "deny_out[0]"),
            (json!({"allow_public_traffic": "no"}), "allow_public_traffic"),
            (json!({"mask_request_host": 5}), "mask_request_host"),
            (json!({"ech": "maybe"}), "ech"),
            (json!({"refused_names": "no"}), "refused_names"),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
        }
    }
}
