//! Starting a command.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use init_protocol::{Exec, Failure, FailureKind, KEPT_SESSION, KEPT_TERMINAL, MAX_COMMAND, TerminalSize};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use sys::process::{Spawn, SpawnError, Step, with_user};

use super::Command;
use crate::accounts::{self, Account};
use crate::clock::Moment;
use crate::connection::bad_request;
use crate::failure::{Result, failure};
use crate::files::absolute;
use crate::log::Log;
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
    start_as(server, exec, Kind::Plain)
}

/// Starts a session and enters it into the table.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_session(
    server: &Server,
    exec: Exec,
    terminal: Option<TerminalSize>,
) -> Result<(Arc<Command>, Running)> {
    start_as(server, exec, terminal.map_or(Kind::Pipes, Kind::Terminal))
}

/// What a command is connected to.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    /// A session with pipes.
    Pipes,
    /// A session with a terminal.
    Terminal(TerminalSize),
}

fn start_as(server: &Server, exec: Exec, kind: Kind) -> Result<(Arc<Command>, Running)> {
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
    let deadline = exec.timeout_ms.and_then(|time| Moment::after(Duration::from_millis(time)));
    let ends = match kind {
        Kind::Plain | Kind::Pipes => Ends::pipes(exec.stdin, &account)?,
        Kind::Terminal(size) => Ends::terminal(size, &account)?,
    };
    let Ends { inside, stdin, stdout, stderr } = ends;
    let chosen = exec.cwd.clone();
    // Everything that can fail comes before the process: nobody would know of it.
    let mut command = Command::new(exec, stdin, &server.budget)?;
    let most = match kind {
        Kind::Plain => None,
        Kind::Pipes => Some(KEPT_SESSION),
        Kind::Terminal(_) => Some(KEPT_TERMINAL),
    };
    if let Some(most) = most {
        let log = Log::new(most, &server.budget).map_err(|error| failure("make an eventfd", error))?;
        command.log = Some(Mutex::new(log));
        command.terminal = matches!(kind, Kind::Terminal(_));
    }
    let spawn = |cwd: &str| {
        let cwd = text(cwd)?;
        let spawn = Spawn {
            program: c"/bin/sh",
            args: &args,
            envs: &envs,
            credentials: &account.credentials,
            cwd: &cwd,
            stdin: inside.stdin.as_ref().map_or(server.null.as_fd(), AsFd::as_fd),
            stdout: inside.stdout.as_fd(),
            stderr: inside.stderr.as_fd(),
            limits: &server.limits,
            terminal: matches!(kind, Kind::Terminal(_)),
        };
        Ok(server.children.spawn(&spawn))
    };
    let (child, exit) = match &chosen {
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
    drop(inside);
    command.pid = child.pid;
    let command = Arc::new(command);
    server.commands.add(Arc::clone(&command));
    let stdout = Some(stdout);
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

/// What a command and init have of its input and output.
struct Ends {
    /// The command's ends.
    inside: Inside,
    /// Init's ends, non-blocking.
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

struct Inside {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Ends {
    fn pipes(stdin: bool, account: &Account) -> Result<Self> {
        let make = || -> rustix::io::Result<Self> {
            let (stdin, theirs) = match stdin {
                true => {
                    let (read, write) = pipe(account)?;
                    fcntl_setfl(&write, OFlags::NONBLOCK)?;
                    (Some(write), Some(read))
                }
                false => (None, None),
            };
            let (stdout, stderr) = (pipe(account)?, pipe(account)?);
            fcntl_setfl(&stdout.0, OFlags::NONBLOCK)?;
            fcntl_setfl(&stderr.0, OFlags::NONBLOCK)?;
            let inside = Inside { stdin: theirs, stdout: stdout.1, stderr: stderr.1 };
            Ok(Self { inside, stdin, stdout: stdout.0, stderr: Some(stderr.0) })
        };
        make().map_err(|error| failure("make the pipes of a command", error))
    }

    /// A terminal that belongs to the user.
    fn terminal(size: TerminalSize, account: &Account) -> Result<Self> {
        let make = || -> rustix::io::Result<Self> {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let ours = with_user(&account.credentials, || openpt(flags))
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))??;
            unlockpt(&ours)?;
            let theirs = ioctl_tiocgptpeer(&ours, flags)?;
            set_size(&ours, size)?;
            fcntl_setfl(&ours, OFlags::NONBLOCK)?;
            let copy = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd, 3);
            let inside = Inside { stdin: Some(copy(&theirs)?), stdout: copy(&theirs)?, stderr: theirs };
            Ok(Self { inside, stdin: Some(copy(&ours)?), stdout: ours, stderr: None })
        };
        make().map_err(|error| failure("make a terminal", error))
    }
}

/// Sets the size of the terminal whose other end this is.
pub(crate) fn set_size(terminal: &OwnedFd, size: TerminalSize) -> rustix::io::Result<()> {
    let TerminalSize { columns, rows } = size;
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
}

/// A pipe that belongs to the user, who may want to open it again as `/dev/stdout`.
fn pipe(account: &Account) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (uid, gid) = (Uid::from_raw(account.credentials.uid), Gid::from_raw(account.credentials.gid));
    rustix::fs::fchown(&write, Some(uid), Some(gid))?;
    Ok((read, write))
}
