//! Times as every client can read them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use utoipa::ToSchema;

/// A moment, written as RFC 3339 in UTC with exactly six digits of fraction and `+00:00`.
///
/// That spelling is the one that Python 3.10's `datetime.fromisoformat` (no `Z`, three or six digits only), Go's
/// `time.Time` and JavaScript's `Date` all accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime, examples("2026-03-01T12:00:00.000000+00:00"))]
pub struct Timestamp(pub jiff::Timestamp);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00"))
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(timestamp: jiff::Timestamp) -> Self {
        Self(timestamp)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_six_digits_of_fraction_and_a_numeric_offset() {
        for (given, written) in [
            ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00.000000+00:00"),
            ("2026-03-01T12:00:00.5Z", "2026-03-01T12:00:00.500000+00:00"),
            ("2026-03-01T12:00:00.123456789Z", "2026-03-01T12:00:00.123456+00:00"),
            ("2026-03-01T14:00:00.000001+02:00", "2026-03-01T12:00:00.000001+00:00"),
        ] {
            let time: Timestamp = serde_json::from_value(given.into()).unwrap();
            assert_eq!(serde_json::to_value(time).unwrap(), written);
        }
    }
}
