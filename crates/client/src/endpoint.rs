//! Where the server is.

use std::{fmt, net::Ipv6Addr};

use hyper::Uri;

use crate::ClientError;

/// Where the daemon of this machine listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";

const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// Where a server is: scheme, host and port. The routes are at its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    https: bool,
    /// An IPv6 address is without brackets.
    host: String,
    port: u16,
}

impl Endpoint {
    /// The address in `url`, else the one that `domain` means, else [`DEFAULT_URL`]. Empty ones do not count.
    ///
    /// `url` is what published clients read from `DECLAW_API_URL` and `domain` what they read from `DECLAW_DOMAIN`: a
    /// host, or `host:port`, over plain HTTP unless the port is 443, which it is without one.
    ///
    /// # Errors
    /// [`ClientError::Url`]
    pub fn find(url: Option<&str>, domain: Option<&str>) -> Result<Self, ClientError> {
        let given =
            |text: Option<&str>| text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        match (given(url), given(domain)) {
            (Some(url), _) => Self::parse(&url),
            (None, Some(domain)) => Self::from_domain(&domain),
            (None, None) => Self::parse(DEFAULT_URL),
        }
    }

    /// Parses `http://host[:port]` or `https://host[:port]`.
    ///
    /// # Errors
    /// [`ClientError::Url`]
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let failed = |problem: String| ClientError::Url { url: url.to_owned(), problem };
        let uri: Uri = url.parse().map_err(|error| failed(format!("{error}")))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(failed("write http://host:port or https://host".to_owned())),
        };
        let authority = uri.authority().ok_or_else(|| failed("it has no host".to_owned()))?;
        if authority.as_str().contains('@') {
            return Err(failed("user and password do not belong there".to_owned()));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(failed("the routes are at the root of the server, so it has no path".to_owned()));
        }
        let port = authority.as_str().rsplit_once(':').filter(|(_, port)| !port.contains(']'));
        let port = match port {
            None => {
                if https {
                    HTTPS
                } else {
                    HTTP
                }
            }
            Some((_, digits)) => match digits.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(failed(format!("{digits:?} is not a port"))),
            },
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(failed("it has no host".to_owned()));
        }
        Ok(Self { https, host, port })
    }

    fn from_domain(domain: &str) -> Result<Self, ClientError> {
        let has_port = domain.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let mut endpoint = Self::parse(&format!("{}://{domain}", if has_port { "http" } else { "https" }))?;
        endpoint.https = endpoint.port == HTTPS;
        Ok(endpoint)
    }

    pub(crate) fn is_https(&self) -> bool {
        self.https
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The value of the `Host` header.
    pub(crate) fn authority(&self) -> String {
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => self.host.clone(),
        };
        match (self.https, self.port) {
            (true, HTTPS) | (false, HTTP) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_comes_before_a_domain_and_that_before_the_daemon_of_this_machine() {
        let find = |url: Option<&str>, domain: Option<&str>| Endpoint::find(url, domain).unwrap().to_string();
        assert_eq!(find(None, None), "http://127.0.0.1:8080");
        assert_eq!(find(Some(""), Some(" ")), "http://127.0.0.1:8080");
        assert_eq!(find(Some("http://a.test:81/"), Some("b.test")), "http://a.test:81");
        assert_eq!(find(Some("https://a.test"), None), "https://a.test");
        assert_eq!(find(Some("https://[::1]:8443"), None), "https://[::1]:8443");
        assert_eq!(find(Some("http://[::1]"), None), "http://[::1]");
        for (domain, url) in [
            ("api.b.test", "https://api.b.test"),
            ("b.test:443", "https://b.test"),
            ("b.test:8080", "http://b.test:8080"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(find(None, Some(domain)), url);
        }
    }

    #[test]
    fn what_is_no_address_of_a_server_is_refused_by_name() {
        for url in [
            "a.test",
            "a.test:8080",
            "ftp://a.test",
            "http://",
            "http://a.test/v1",
            "http://a.test?x",
            "http://u:p@a.test",
            "http://a.test:0",
            "http://a.test:x",
            "http://a.test:99999",
            "http://a b",
            "unix:/run/x",
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains(url), "{url}: {error}");
        }
        assert!(Endpoint::find(None, Some("http://a.test")).is_err());
    }
}
