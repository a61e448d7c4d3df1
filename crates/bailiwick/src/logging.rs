//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging; `BAILIWICK_LOG` sets levels (`debug`, `gate=trace,info`), and the default is `info`.
pub(crate) fn start(json: bool) {
    let filter = EnvFilter::try_from_env("BAILIWICK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A line that cannot be written (the disk is full) is lost; saying so would have to be written, too.
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let lines = lines.with_ansi(coloured);
    // Failing means that a subscriber is there already, which is what is wanted.
    let _there_already = if json { lines.json().try_init() } else { lines.try_init() };
    std::panic::set_hook(Box::new(log_panic));
}

/// A panic is a line of the log like any other: it ends one task, and the daemon goes on.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let said = panic.payload_as_str().unwrap_or("nothing that can be shown");
    let place = panic.location().map(ToString::to_string);
    let thread = std::thread::current();
    tracing::error!(thread = thread.name(), place, "panicked: {said}");
}

/// Starts logging for a command that is not a daemon: warnings and errors only.
pub(crate) fn start_quiet() {
    let filter = EnvFilter::try_from_env("BAILIWICK_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    let lines = lines.log_internal_errors(false);
    // Failing means that a subscriber is there already, which is what is wanted.
    let _there_already = lines.with_ansi(false).try_init();
}
