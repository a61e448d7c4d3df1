//! Request and response types of the REST API, as every client sends and expects them.
//!
//! Nothing here does anything: there are types, their JSON, and the checks that turn what a client sent into
//! values the rest of the program can rely on. Every check names the field it is about ([`FieldError`]).
//!
//! Clients differ from each other in details (a policy as an object or as JSON in a string, `null` for an empty
//! list, a flag as a string). What is accepted is the union; what is sent is what all of them can read.

#![forbid(unsafe_code)]

mod account;
mod audit;
mod command;
mod error;
mod file;
mod lenient;
mod metadata;
mod network;
mod ratchet;
mod sandbox;
mod security;
mod session;
mod shortened;
mod time;
mod usage;

pub use account::{
    Account, AccountInfo, AccountName, ApiKey, ApiKeyCreated, ApiKeyRevoked, ApiKeys, Balances, CreateApiKey,
    Deposits, InvalidAccountName, InvalidKeyName, KeyName, Me, TIER, Wallet,
};
pub use audit::{AuditEvent, AuditPage, AuditRule};
pub use command::{
    Command, CommandExit, CommandRun, CommandStarted, Killed, RunCommand, StdinData, StreamExit,
    StreamFailure, StreamedOutput,
};
pub use error::{ErrorBody, FieldError, code};
pub use file::{
    DirectoryChange, Entry, EntryKind, Exists, MadeDirectory, MakeDirectory, Removed, Rename, WatchDirectory,
    WriteFile, WriteFiles, Written,
};
pub use lenient::{Seconds, from_json};
pub use metadata::parse_metadata_filter;
pub use network::{EchMode, MaskRequestHost, Network, RefusedNames};
pub use ratchet::{Ratchet, RatchetRevoked};
pub use sandbox::{
    Acknowledged, CreateSandbox, Health, KillMany, KillManyResults, KillOutcome, Lifecycle, Metrics,
    OnTimeout, Queued, Running, Sandbox, SandboxList, SandboxState, SetTimeout, VolumeAttachment,
};
pub use security::{Security, SecurityPolicy};
pub use session::{EncodedData, OpenPty, OutputPiece, PtySize, ResizePty, StartStdio, StdioStarted};
pub use shortened::shortened;
pub use time::Timestamp;
pub use usage::{ComputeUsage, NoCost, Overview, TierLimits, Usage, UsageDays, UsageOfDay, UsedToday};
