//! The security policy of a request: an object, or the same object as JSON in a string.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{FieldError, Network, from_json, lenient::null_is_default};

/// The `security` of a create request as it comes: the policy itself, or `{"policy_json": "<the policy>"}`.
#[derive(Clone, Debug, Default, ToSchema)]
#[schema(value_type = SecurityPolicy)]
pub struct Security(Value);

impl Security {
    /// The most bytes of it as JSON without spaces: a network policy, and room for the other sections.
    pub const BYTES: usize = Network::BYTES + (256 << 10);

    /// The policy, and the JSON it was read from.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] naming the field below `security`.
    pub fn policy(&self) -> Result<(SecurityPolicy, Value), FieldError> {
        let (value, prefix) = match self.0.get("policy_json") {
            None => (self.0.clone(), "security"),
            Some(Value::Null) => (Value::Null, "security"),
            Some(Value::String(text)) => {
                let value: Value = serde_json::from_str(text).map_err(|error| {
                    FieldError::invalid("security.policy_json", format!("not JSON: {error}"))
                })?;
                (value, "security.policy_json")
            }
            Some(_) => return Err(FieldError::invalid("security.policy_json", "expected JSON in a string")),
        };
        if !(value.is_object() || value.is_null()) {
            return Err(FieldError::invalid(prefix, "expected an object"));
        }
        let text = value.to_string();
        if text.len() > Self::BYTES {
            let problem = format!("{} bytes of JSON are more than {}", text.len(), Self::BYTES);
            return Err(FieldError::invalid(prefix, problem));
        }
        let policy = from_json(text.as_bytes()).map_err(|error| match error {
            FieldError::Invalid { field, problem } => {
                FieldError::Invalid { field: format!("{prefix}.{field}"), problem }
            }
            other => other,
        })?;
        Ok((policy, value))
    }
}

impl<'de> Deserialize<'de> for Security {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self)
    }
}

/// A security policy. Sections that inspect content are read so that a request for them can be refused.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct SecurityPolicy {
    /// The network policy, used when the request has none of its own.
    #[serde(default)]
    pub network: Option<Network>,
    /// Whether decisions and operations are recorded. Default on; life-cycle events are always recorded.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub audit: Section,
    /// Redaction of personal data. Not implemented.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub pii: Section,
    /// Detection of prompt injection. Not implemented.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub injection_defense: Section,
    /// Rewriting of bodies. Not implemented.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schema(value_type = Vec<Object>)]
    pub transformations: Vec<Value>,
    /// Detection of toxic text. Not implemented.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub toxicity: Section,
    /// Detection of code. Not implemented.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub code_security: Section,
    /// Removal of invisible characters. Not implemented.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub invisible_text: Section,
    /// Gating of models and endpoints by content. Not implemented.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub content_gate: Section,
    /// Policies in Rego. Not implemented.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub custom_policy: Section,
    /// Masking of environment variables. Values are never shown or recorded, so patterns change nothing.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub env_security: EnvSecurity,
}

impl SecurityPolicy {
    /// Whether decisions and operations are to be recorded.
    pub fn audit_enabled(&self) -> bool {
        self.audit.enabled.unwrap_or(true)
    }

    /// Refuses what this server cannot do.
    ///
    /// # Errors
    /// [`FieldError::NotImplemented`] for the first section that asks for it.
    pub fn refuse_unimplemented(&self) -> Result<(), FieldError> {
        let sections = [
            ("security.pii", "redaction of personal data", self.pii.is_on()),
            ("security.injection_defense", "detection of prompt injection", self.injection_defense.is_on()),
            ("security.transformations", "rewriting of bodies", !self.transformations.is_empty()),
            ("security.toxicity", "detection of toxic text", self.toxicity.is_on()),
            ("security.code_security", "detection of code", self.code_security.is_on()),
            ("security.invisible_text", "removal of invisible characters", self.invisible_text.is_on()),
            ("security.content_gate", "gating by content", self.content_gate.is_on()),
            ("security.custom_policy", "a policy in Rego", self.custom_policy.is_on()),
            (
                "security.env_security.sensitive_vars",
                "a variable that is set through the security policy",
                !self.env_security.sensitive_vars.is_empty(),
            ),
        ];
        match sections.into_iter().find(|(.., asked)| *asked) {
            Some((field, what, _)) => Err(FieldError::not_implemented(field, what)),
            None => Ok(()),
        }
    }
}

/// A section that can be switched on: `{"enabled": true, …}`, or just `true`. `null` says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// What the section says, if anything.
    pub enabled: Option<bool>,
}

impl Section {
    /// Whether it is switched on.
    pub fn is_on(self) -> bool {
        self.enabled == Some(true)
    }
}

impl<'de> Deserialize<'de> for Section {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SectionVisitor)
    }
}

struct SectionVisitor;

impl<'de> de::Visitor<'de> for SectionVisitor {
    type Value = Section;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object with `enabled`, or a boolean")
    }

    fn visit_bool<E>(self, enabled: bool) -> Result<Section, E> {
        Ok(Section { enabled: Some(enabled) })
    }

    fn visit_unit<E>(self) -> Result<Section, E> {
        Ok(Section::default())
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Section, A::Error> {
        #[derive(Deserialize)]
        struct Object {
            enabled: Option<bool>,
        }
        Object::deserialize(de::value::MapAccessDeserializer::new(map))
            .map(|object| Section { enabled: object.enabled })
    }
}

/// The part of `env_security` that could have an effect.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct EnvSecurity {
    #[serde(default, deserialize_with = "null_is_default")]
    sensitive_vars: Vec<Value>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_longer_than_is_kept_is_refused_by_name() {
        let long = |bytes: usize| Security(json!({"description": "d".repeat(bytes)}));
        let around = Security(json!({"description": ""})).0.to_string().len();
        long(Security::BYTES - around).policy().unwrap();
        let error = long(Security::BYTES - around + 1).policy().unwrap_err().to_string();
        assert!(error.starts_with("security: "), "{error}");
    }

    /// What the Python client 1.7.0 makes of `SecurityPolicy()`.
    fn python_default() -> Value {
        json!({
            "pii": {
                "enabled": false,
                "types": ["ssn", "credit_card", "email", "phone", "person_name", "api_key", "address", "ip_address"],
                "action": "redact",
                "rehydrate_response": true
            },
            "injection_defense": {
                "enabled": false, "action": "log_only", "sensitivity": "medium", "threshold": 0.95
            },
            "transformations": [],
            "audit": {"enabled": true},
            "env_security": {
                "mask_patterns": ["*_KEY", "*_SECRET", "*_TOKEN", "*_PASSWORD", "*_CREDENTIALS", "API_KEY", "SECRET_KEY"],
                "auto_mask_in_audit": true
            }
        })
    }

    fn policy(security: Value) -> Result<SecurityPolicy, FieldError> {
        serde_json::from_value::<Security>(security).unwrap().policy().map(|(policy, _)| policy)
    }

    #[test]
    fn the_defaults_of_the_clients_are_accepted_in_both_shapes() {
        let wrapped = json!({"policy_json": python_default().to_string()});
        let nothing_on =
            json!({"pii": null, "toxicity": {"enabled": false, "threshold": 0}, "injection_defense": false});
        let disabled = json!({"custom_policy": {"enabled": false, "inline_rego": null, "policy_ref": null}});
        for security in [
            python_default(),
            wrapped,
            nothing_on,
            disabled,
            json!({}),
            json!(null),
            json!({"policy_json": null}),
        ] {
            let policy = policy(security.clone()).unwrap();
            policy.refuse_unimplemented().unwrap();
            assert!(policy.audit_enabled(), "{security}");
        }
    }

    #[test]
    fn every_section_that_inspects_content_is_refused_by_name() {
        let on = json!({"enabled": true});
        for (security, field) in [
            (json!({"pii": on}), "security.pii"),
            (json!({"pii": true}), "security.pii"),
            (json!({"injection_defense": true}), "security.injection_defense"),
            (json!({"injection_defense": on}), "security.injection_defense"),
            (json!({"transformations": [{"match": "a", "replace": "b"}]}), "security.transformations"),
            (json!({"toxicity": on}), "security.toxicity"),
            (json!({"code_security": on}), "security.code_security"),
            (json!({"invisible_text": on}), "security.invisible_text"),
            (json!({"content_gate": on}), "security.content_gate"),
            (json!({"custom_policy": {"enabled": true, "policy_ref": "p@v1"}}), "security.custom_policy"),
            (
                json!({"env_security": {"sensitive_vars": [{"name": "A", "value": "b"}]}}),
                "security.env_security.sensitive_vars",
            ),
        ] {
            for shape in [security.clone(), json!({"policy_json": security.to_string()})] {
                let error = policy(shape).unwrap().refuse_unimplemented().unwrap_err();
                assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
                assert!(matches!(error, FieldError::NotImplemented { .. }));
            }
        }
    }

    #[test]
    fn audit_can_be_switched_off() {
        for security in [json!({"audit": {"enabled": false}}), json!({"audit": false})] {
            assert!(!policy(security).unwrap().audit_enabled());
        }
        assert!(policy(json!({"audit": {"log_request_body": false}})).unwrap().audit_enabled());
    }

    #[test]
    fn a_malformed_policy_is_refused_by_name() {
        for (security, field) in [
            (json!({"policy_json": "{"}), "security.policy_json: not JSON"),
            (json!({"policy_json": ""}), "security.policy_json: not JSON"),
            (json!({"policy_json": 5}), "security.policy_json: "),
            (json!({"policy_json": "[]"}), "security.policy_json: expected an object"),
            (json!("strict"), "security: expected an object"),
            (json!({"pii": "yes"}), "security.pii: "),
            (json!({"pii": {"enabled": "yes"}}), "security.pii.enabled: "),
            (json!({"network": {"allow_out": [1]}}), "security.network.allow_out[0]: "),
            (
                json!({"policy_json": "{\"network\":{\"allow_out\":[1]}}"}),
                "security.policy_json.network.allow_out[0]: ",
            ),
        ] {
            let error = policy(security).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
