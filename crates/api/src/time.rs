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

/// The beginning of the year 1.
const FIRST: jiff::Timestamp = jiff::Timestamp::constant(-62_135_596_800, 0);

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
        let time: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        // A year before the first has no spelling that anybody reads.
        if time < FIRST { Err(D::Error::custom("a time before the year 1")) } else { Ok(Self(time)) }
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

    #[test]
    fn a_time_that_could_not_be_written_is_refused() {
        let read = |text: &str| serde_json::from_value::<Timestamp>(text.into());
        let first = read("0001-01-01T00:00:00Z").unwrap();
        assert_eq!(first.to_string(), "0001-01-01T00:00:00.000000+00:00");
        assert!(read("9999-12-30T00:00:00Z").is_ok());
        for text in ["0000-12-31T23:59:59Z", "0001-01-01T00:00:00+01:00", "-000001-01-01T00:00:00Z"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
