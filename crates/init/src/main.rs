//! PID 1 of a sandbox: runs commands, works on files, reaps.
fn main() {}
