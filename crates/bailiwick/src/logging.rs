//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging; `BAILIWICK_LOG` sets levels (`debug`, `gate=trace,info`), and the default is `info`.
pub(crate) fn start(json: bool) {
    let filter = EnvFilter::try_from_env("BAILIWICK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(coloured);
    // Failing means that a subscriber is there already, which is what is wanted.
    let _there_already = if json { lines.json().try_init() } else { lines.try_init() };
}

/// Starts logging for a command that is not a daemon: warnings and errors only.
pub(crate) fn start_quiet() {
    let filter = EnvFilter::try_from_env("BAILIWICK_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    // Failing means that a subscriber is there already, which is what is wanted.
    let _there_already = lines.with_ansi(false).try_init();
}
