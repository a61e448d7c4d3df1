//! Starting a command.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use init_protocol::{Exec, Failure, FailureKind, MAX_COMMAND};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid};
use sys::process::{Spawn, SpawnError, Step};

use super::Command;
use crate::accounts::{self, Account};
use crate::connection::bad_request;
use crate::failure::{Result, failure};
use crate::files::absolute;
use crate::server::Server;
use crate::supervise::Running;

/// Most commands that run at a time.
const RUNNING: usize = 512;

/// Search path of commands, unless an environment says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const SHELL: &str = "/bin/sh";

/// Starts a command and enters it into the table.
///
/// # Errors
/// Unknown user, missing working directory, limits.
pub(crate) fn start(server: &Server, exec: Exec) -> Result<(Arc<Command>, Running)> {
    if server.commands.count() >= RUNNING {
        return Err(Failure::new(FailureKind::Busy, format!("{RUNNING} commands are running")));
    }
    if exec.command.len() > MAX_COMMAND {
        let message =
            format!("a command line may have {MAX_COMMAND} bytes, this one has {}", exec.command.len());
        return Err(Failure::new(FailureKind::TooLarge, message));
    }
    check_environment(&exec.envs)?;
    let account = accounts::lookup(exec.user.as_deref())?;
    let args = ["sh", "-c", &exec.command].map(text);
    let [sh, option, line] = args;
    let args = [sh?, option?, line?];
    let envs = environment(server, &account, &exec.envs)?;
    let deadline = exec.timeout_ms.and_then(|time| Instant::now().checked_add(Duration::from_millis(time)));
    let pipes = Pipes::new(exec.stdin, &account)?;
    let spawn = |cwd: &str| {
        let cwd = text(cwd)?;
        let spawn = Spawn {
            program: c"/bin/sh",
            args: &args,
            envs: &envs,
            credentials: &account.credentials,
            cwd: &cwd,
            stdin: pipes.stdin.as_ref().map_or(server.null.as_fd(), |(read, _)| read.as_fd()),
            stdout: pipes.stdout.1.as_fd(),
            stderr: pipes.stderr.1.as_fd(),
            limits: &server.limits,
        };
        Ok(server.children.spawn(&spawn))
    };
    let (child, exit) = match &exec.cwd {
        Some(cwd) => {
            let cwd = absolute(&account, cwd)?;
            spawn(&cwd)?.map_err(|error| refusal(&error, &account, &cwd))?
        }
        // Images without the user's home have somewhere to start nevertheless.
        None => match spawn(&account.home)? {
            Err(SpawnError { step: Step::WorkingDirectory, .. }) => spawn("/")?,
            result => result,
        }
        .map_err(|error| refusal(&error, &account, &account.home))?,
    };
    let Pipes { stdin, stdout, stderr } = pipes;
    let mut command = Command::new(exec, stdin.map(|(_, write)| write), &server.budget)?;
    command.pid = child.pid;
    let command = Arc::new(command);
    server.commands.add(Arc::clone(&command));
    let (stdout, stderr) = (Some(stdout.0), Some(stderr.0));
    Ok((command, Running { pid: child.pid, pidfd: child.pidfd, exit, deadline, stdout, stderr }))
}

/// Refuses variables that no environment can hold.
///
/// # Errors
/// [`FailureKind::BadRequest`].
pub(crate) fn check_environment(envs: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in envs {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(bad_request(format!("{name:?} cannot be the name of a variable")));
        }
        if value.contains('\0') {
            return Err(bad_request(format!("the value of {name} contains NUL")));
        }
    }
    Ok(())
}

/// The environment: what every program expects, then the sandbox's, then the command's own.
fn environment(server: &Server, account: &Account, own: &BTreeMap<String, String>) -> Result<Vec<CString>> {
    let configure = server.configure.read().unwrap_or_else(PoisonError::into_inner);
    let mut all: BTreeMap<&str, &str> = BTreeMap::from([
        ("PATH", PATH),
        ("HOME", account.home.as_str()),
        ("USER", account.name.as_str()),
        ("LOGNAME", account.name.as_str()),
        ("SHELL", account.shell.as_str()),
        ("DECLAW_SANDBOX", "true"),
        ("DECLAW_SANDBOX_ID", configure.sandbox_id.as_str()),
    ]);
    all.extend(configure.envs.iter().chain(own).map(|(name, value)| (name.as_str(), value.as_str())));
    all.into_iter().map(|(name, value)| text(format!("{name}={value}"))).collect()
}

fn text(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| bad_request("a command, directory or variable contains NUL"))
}

fn refusal(error: &SpawnError, account: &Account, cwd: &str) -> Failure {
    let what = match error.step {
        Step::Clone => "start a process".to_owned(),
        Step::Prepare => "set up a process".to_owned(),
        Step::Credentials => format!("become user {}", account.name),
        Step::WorkingDirectory => format!("working directory {cwd}"),
        Step::Exec => format!("execute {SHELL}"),
    };
    failure(what, std::io::Error::from_raw_os_error(error.source.raw_os_error().unwrap_or(0)))
}

/// The pipes of a command: read and write end each.
struct Pipes {
    stdin: Option<(OwnedFd, OwnedFd)>,
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
}

impl Pipes {
    fn new(stdin: bool, account: &Account) -> Result<Self> {
        let make = || -> rustix::io::Result<Self> {
            let stdin = if stdin { Some(pipe(account)?) } else { None };
            if let Some((_, write)) = &stdin {
                fcntl_setfl(write, OFlags::NONBLOCK)?;
            }
            let (stdout, stderr) = (pipe(account)?, pipe(account)?);
            fcntl_setfl(&stdout.0, OFlags::NONBLOCK)?;
            fcntl_setfl(&stderr.0, OFlags::NONBLOCK)?;
            Ok(Self { stdin, stdout, stderr })
        };
        make().map_err(|error| failure("make the pipes of a command", error))
    }
}

/// A pipe that belongs to the user, who may want to open it again as `/dev/stdout`.
fn pipe(account: &Account) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (uid, gid) = (Uid::from_raw(account.credentials.uid), Gid::from_raw(account.credentials.gid));
    rustix::fs::fchown(&write, Some(uid), Some(gid))?;
    Ok((read, write))
}
