//! Reading JSON as leniently as clients differ, and no more.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error};
use utoipa::ToSchema;

use crate::FieldError;

/// Parses a JSON body. `null` and an empty body both read as an empty object, because some clients declare JSON
/// and send nothing.
///
/// # Errors
/// [`FieldError::Invalid`] that names the field by its path, or `body` if the text is not a JSON object.
pub fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, FieldError> {
    let body = match body.trim_ascii() {
        b"" | b"null" => b"{}",
        body if body.starts_with(b"{") => body,
        _ => return Err(FieldError::invalid("body", "expected a JSON object")),
    };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            // The last is a field without a name.
            "." | "?" | "" => "body".to_owned(),
            path => path.to_owned(),
        };
        FieldError::invalid(field, error.into_inner())
    })?;
    deserializer.end().map_err(|error| FieldError::invalid("body", error))?;
    Ok(value)
}

/// `null` reads as the default value.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The most variables of one request, and the most bytes of their names and values together.
pub(crate) const ENVS: usize = 1024;
pub(crate) const ENVS_BYTES: usize = 256 << 10;
/// The most bytes of one variable, `=` included: the kernel takes no longer one (`MAX_ARG_STRLEN`, with its NUL).
pub(crate) const ENV_BYTES: usize = (128 << 10) - 1;

/// Refuses variables that no environment can have (no name, `=` in the name, NUL, longer than the kernel takes), and more
/// than are kept for a sandbox or sent to it at once.
pub(crate) fn check_envs(envs: &BTreeMap<String, String>) -> Result<(), FieldError> {
    check_size("envs", envs, ENVS, ENVS_BYTES)?;
    for (name, value) in envs {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(FieldError::invalid("envs", format!("{name:?} is not a name of a variable")));
        }
        if value.contains('\0') {
            return Err(FieldError::invalid(format!("envs.{name}"), "a value has no NUL"));
        }
        if name.len() + 1 + value.len() > ENV_BYTES {
            let problem = format!("name and value are longer than {} bytes", ENV_BYTES - 1);
            return Err(FieldError::invalid(format!("envs.{name}"), problem));
        }
    }
    Ok(())
}

/// Refuses more entries, or more bytes of their names and values together, than these.
pub(crate) fn check_size(
    field: &str,
    entries: &BTreeMap<String, String>,
    most: usize,
    most_bytes: usize,
) -> Result<(), FieldError> {
    if entries.len() > most {
        return Err(FieldError::invalid(field, format!("{} entries are more than {most}", entries.len())));
    }
    let bytes: usize = entries.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > most_bytes {
        let problem = format!("{bytes} bytes of names and values are more than {most_bytes}");
        return Err(FieldError::invalid(field, problem));
    }
    Ok(())
}

/// A span of time, written as a number of seconds.
///
/// Fractions are accepted. At most one year: longer spans are mistakes, and `0` already means "no limit" wherever
/// that is possible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = f64, minimum = 0, maximum = 31_536_000)]
pub struct Seconds(pub Duration);

impl Seconds {
    /// The longest span accepted, one year.
    pub const MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    /// Checks and converts a number of seconds.
    ///
    /// # Errors
    /// What is wrong with the number, in words.
    pub fn from_number(seconds: f64) -> Result<Self, String> {
        match Duration::try_from_secs_f64(seconds) {
            Ok(span) if span <= Self::MAX => Ok(Self(span)),
            Ok(_) => Err(format!("at most {} seconds (one year)", Self::MAX.as_secs())),
            Err(_) => Err(format!("{seconds} is not a number of seconds from 0 up")),
        }
    }

    /// Whole seconds, rounded up.
    pub fn rounded_up(self) -> Duration {
        Duration::from_secs(self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0))
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_number(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.subsec_nanos() {
            0 => serializer.serialize_u64(self.0.as_secs()),
            _ => serializer.serialize_f64(self.0.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Example {
        #[serde(default, deserialize_with = "null_is_default")]
        list: Vec<String>,
        #[serde(default)]
        inner: BTreeMap<String, Vec<u8>>,
    }

    #[test]
    fn an_error_names_the_field_by_its_path() {
        let error = from_json::<Example>(br#"{"list":["a",5]}"#).unwrap_err().to_string();
        assert!(error.starts_with("list[1]: invalid type: integer `5`, expected a string"), "{error}");
        let error = from_json::<Example>(br#"{"inner":{"key":[1,300]}}"#).unwrap_err().to_string();
        assert!(error.starts_with("inner.key[1]: "), "{error}");
        let error = from_json::<BTreeMap<String, u8>>(br#"{"":"a"}"#).unwrap_err().to_string();
        assert!(error.starts_with("body: invalid type"), "{error}");
        assert!(from_json::<Example>(b"{").is_err());
        assert!(from_json::<Example>(b"{} {}").is_err());
        assert!(from_json::<Example>(b"[]").is_err());
    }

    #[test]
    fn nothing_and_null_read_as_an_empty_object() {
        for body in [&b""[..], b" \n", b"null", b"{}", br#"{"list":null}"#, br#"{"unknown":{"x":1}}"#] {
            let example: Example = from_json(body).unwrap();
            assert!(example.list.is_empty() && example.inner.is_empty());
        }
    }

    #[test]
    fn an_error_repeats_no_more_of_a_request_than_helps() {
        let long = "n".repeat(1 << 20);
        let name = format!(r#"{{"inner":{{"{long}":[300]}}}}"#);
        let value = format!(r#"{{"list":"{long}"}}"#);
        for body in [name, value] {
            let error = from_json::<Example>(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("nnn") && error.len() < 2000, "{} bytes", error.len());
        }
    }

    #[test]
    fn variables_are_refused_beyond_their_limits_and_taken_up_to_them() {
        let envs = |count: usize, bytes: usize| -> BTreeMap<String, String> {
            (0..count).map(|n| (format!("V{n:04}"), "v".repeat(bytes))).collect()
        };
        for fits in [envs(ENVS, 0), envs(2, ENV_BYTES - 6), envs(ENVS, ENVS_BYTES / ENVS - 5)] {
            check_envs(&fits).unwrap();
        }
        for (over, field) in [
            (envs(ENVS + 1, 0), "envs: "),
            (envs(ENVS, ENVS_BYTES / ENVS - 4), "envs: "),
            (envs(1, ENV_BYTES - 5), "envs.V0000: "),
        ] {
            let error = check_envs(&over).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn seconds_are_numbers_from_zero_to_a_year() {
        for (given, millis) in
            [(json!(0), 0), (json!(60), 60_000), (json!(1.5), 1_500), (json!(300.0), 300_000)]
        {
            assert_eq!(serde_json::from_value::<Seconds>(given).unwrap().0, Duration::from_millis(millis));
        }
        for given in [json!(-1), json!(1e300), json!(31_536_001), json!("60"), json!(null), json!(true)] {
            assert!(serde_json::from_value::<Seconds>(given.clone()).is_err(), "{given}");
        }
        assert_eq!(Seconds(Duration::from_millis(1_001)).rounded_up(), Duration::from_secs(2));
        assert_eq!(Seconds(Duration::from_secs(2)).rounded_up(), Duration::from_secs(2));
    }
}
