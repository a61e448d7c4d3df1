//! Processes: fork, exec, wait, signals, credentials.
