//! The configuration of the daemon: defaults, then the file, then the environment, then flags.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::limits::Limits;

/// Where the configuration file is looked for when none is named. It need not exist.
const DEFAULT_FILE: &str = "/etc/bailiwick/config.toml";
/// Where state is kept unless told otherwise.
const DEFAULT_DATA_DIR: &str = "/var/lib/bailiwick";
/// Where the API listens unless told otherwise: this machine only.
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

/// Options that say where the state of the daemon is; common to most commands.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DataArgs {
    /// Configuration file (TOML); /etc/bailiwick/config.toml is read if it exists
    #[arg(long, env = "BAILIWICK_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Directory of all state: sandboxes, templates, events, keys [default: /var/lib/bailiwick]
    #[arg(long, env = "BAILIWICK_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
}

/// Options of `bailiwick serve`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ServeArgs {
    /// Address to listen on; may be repeated [default: 127.0.0.1:8080]
    #[arg(long, env = "BAILIWICK_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
    /// Certificate chain (PEM) for TLS
    #[arg(long, env = "BAILIWICK_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) for TLS
    #[arg(long, env = "BAILIWICK_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// DNS server that permitted names are looked up at; may be repeated [default: those of /etc/resolv.conf]
    #[arg(long, env = "BAILIWICK_DNS", value_name = "ADDR[:PORT]", value_delimiter = ',', value_parser = dns_server)]
    pub dns: Vec<SocketAddr>,
    /// Directory of the templates [default: templates/ in the data directory]
    #[arg(long, env = "BAILIWICK_TEMPLATES", value_name = "DIR")]
    pub templates_dir: Option<PathBuf>,
    /// Limit of each sandbox, such as flows=100; may be repeated, and wins over [limits] in the configuration file
    #[arg(long = "limit", env = "BAILIWICK_LIMITS", value_name = "NAME=NUMBER", value_delimiter = ',')]
    pub limits: Vec<String>,
    /// Print log lines as JSON
    #[arg(long, env = "BAILIWICK_LOG_JSON")]
    pub log_json: bool,
}

/// The file. Every key is optional; an unknown one is an error, so that a typing mistake is not silently ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen: Vec<SocketAddr>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    dns: Vec<String>,
    templates_dir: Option<PathBuf>,
    log_json: bool,
    audit_retention_days: Option<u64>,
    limits: toml::Table,
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Directory of all state.
    pub data_dir: PathBuf,
    /// Addresses the API listens on.
    pub listen: Vec<SocketAddr>,
    /// Certificate chain and private key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// DNS servers; empty means those of the machine.
    pub dns: Vec<SocketAddr>,
    /// Where the templates are.
    pub templates_dir: PathBuf,
    /// Log lines as JSON.
    pub log_json: bool,
    /// How long events are kept.
    pub audit_retention: Duration,
    /// What each sandbox may use.
    pub limits: Limits,
}

impl Config {
    /// Merges flags and environment (already one in `data` and `serve`) over the file over the defaults.
    pub(crate) fn load(data: &DataArgs, serve: &ServeArgs) -> Result<Self> {
        let file = File::read(data.config.as_deref())?;
        let tls = match (serve.tls_cert.clone().or(file.tls_cert), serve.tls_key.clone().or(file.tls_key)) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => bail!("tls_cert and tls_key go together: only one of them is set"),
        };
        let dns = if serve.dns.is_empty() {
            file.dns.iter().map(|text| dns_server(text).map_err(anyhow::Error::msg)).collect::<Result<_>>()?
        } else {
            serve.dns.clone()
        };
        let listen = [serve.listen.clone(), file.listen, vec![default_listen()]]
            .into_iter()
            .find(|addresses| !addresses.is_empty())
            .unwrap_or_default();
        let data_dir = data.data_dir.clone().or(file.data_dir).unwrap_or_else(|| DEFAULT_DATA_DIR.into());
        let templates_dir = serve.templates_dir.clone().or(file.templates_dir);
        Ok(Self {
            templates_dir: absolute(&templates_dir.unwrap_or_else(|| data_dir.join("templates")))?,
            data_dir: absolute(&data_dir)?,
            listen,
            tls,
            dns,
            log_json: serve.log_json || file.log_json,
            audit_retention: Duration::from_secs(file.audit_retention_days.unwrap_or(7) * 24 * 3600),
            limits: Limits::read(&file.limits, &serve.limits)?,
        })
    }
}

impl File {
    fn read(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => {
                toml::from_str(&text).with_context(|| format!("in the configuration file {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                Ok(Self::default())
            }
            Err(error) => {
                Err(error).with_context(|| format!("reading the configuration file {}", path.display()))
            }
        }
    }
}

/// Sandboxes are built by another process, in other directories.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} as a directory", path.display()))
}

fn default_listen() -> SocketAddr {
    DEFAULT_LISTEN.parse().expect("the default address is well formed")
}

/// Parses the address of a DNS server; the port is 53 unless it is given.
pub(crate) fn dns_server(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let address = text.parse().map_err(|_| format!("{text:?} is not an address, with or without a port"))?;
    Ok(SocketAddr::new(address, 53))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, serve: &ServeArgs) -> Result<Config> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("config.toml");
        std::fs::write(&path, file)?;
        Config::load(&DataArgs { config: Some(path), data_dir: None }, serve)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let from_file =
            load("listen = [\"127.0.0.1:9000\"]\ndns = [\"127.0.0.53\"]", &ServeArgs::default()).unwrap();
        assert_eq!(from_file.listen, ["127.0.0.1:9000".parse().unwrap()]);
        assert_eq!(from_file.dns, ["127.0.0.53:53".parse().unwrap()]);
        assert_eq!(from_file.data_dir, Path::new(DEFAULT_DATA_DIR));
        let flags = ServeArgs { listen: vec!["[::1]:9001".parse().unwrap()], ..ServeArgs::default() };
        assert_eq!(load("listen = [\"127.0.0.1:9000\"]", &flags).unwrap().listen, flags.listen);
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_it() {
        let error = load("lisen = []", &ServeArgs::default()).unwrap_err();
        assert!(format!("{error:#}").contains("lisen"), "{error:#}");
    }

    #[test]
    fn directories_are_absolute_however_they_are_given() {
        let config = load("data_dir = \"state\"", &ServeArgs::default()).unwrap();
        assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("state"));
        assert_eq!(config.templates_dir, config.data_dir.join("templates"));
        let flags = ServeArgs { templates_dir: Some("./made".into()), ..ServeArgs::default() };
        assert!(load("", &flags).unwrap().templates_dir.is_absolute());
    }

    #[test]
    fn half_of_a_tls_configuration_is_refused() {
        assert!(load("tls_cert = \"/x\"", &ServeArgs::default()).is_err());
    }
}
