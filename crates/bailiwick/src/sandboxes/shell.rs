//! `bailiwick sandbox shell`: a terminal in a sandbox, in this one.

mod raw;
mod text;

use std::{
    convert::Infallible,
    future::pending,
    io::{Read, Stdin, stdin},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use api::PtySize;
use client::{Client, ClientError, NewTerminal, SessionEvent, SessionEvents};
use rustix::{
    process::Signal,
    termios::{isatty, tcgetwinsize},
};
use tokio::{
    io::{AsyncWriteExt, stdout},
    select,
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::mpsc::{Receiver, channel},
    time::timeout,
};

use self::{raw::RawMode, text::Characters};
use crate::{
    cli::ShellArgs,
    exit::{self, BadInput},
    remote::ApiFailure,
    run,
};

/// How much of what is typed is read at once, in bytes.
const PIECE: usize = 4096;
/// Pieces that were typed and are not sent yet; then typing waits.
const PIECES: usize = 16;
/// How long the daemon has to kill the shell when this is ended.
const KILLING: Duration = Duration::from_secs(5);

/// Opens the terminal, and gives the exit code of its shell.
pub(super) async fn run(connect: impl FnOnce() -> Result<Client>, args: &ShellArgs) -> Result<u8> {
    for (is_terminal, what) in [(isatty(stdin()), "input"), (isatty(std::io::stdout()), "output")] {
        if !is_terminal {
            return Err(anyhow!(BadInput(format!(
                "standard {what} is not a terminal; `bailiwick sandbox exec` runs a command without one"
            ))));
        }
    }
    let wanted = NewTerminal {
        size: Some(size()),
        user: args.user.clone(),
        envs: run::environment(&args.env)?,
        cwd: args.cwd.clone(),
    };
    let client = connect()?;
    // Before there is anything to end or to put right again.
    let mut ends = Ends::new().context("watching for signals")?;
    let mut changes = Changes::new().context("watching for signals")?;
    let terminal = Terminal {
        number: client.open_terminal(&args.id, &wanted).await.map_err(ApiFailure)?,
        client,
        sandbox: args.id.clone(),
    };
    let ended = terminal.used(&mut ends, &mut changes).await;
    if !matches!(ended, Ok(Ended::Itself(_))) {
        // Who is not there any more cannot be told that this failed, too; the sandbox ends it with itself.
        let _unreachable =
            timeout(KILLING, terminal.client.kill_terminal(&terminal.sandbox, terminal.number)).await;
    }
    match ended? {
        Ended::Itself(code) => Ok(u8::try_from(code).unwrap_or(exit::FAILED)),
        Ended::BySignal(signal) => Ok(u8::try_from(128 + signal.as_raw()).unwrap_or(exit::FAILED)),
    }
}

/// How the use of a terminal has ended.
enum Ended {
    /// The shell has, with this exit code.
    Itself(i32),
    /// This program is to.
    BySignal(Signal),
}

/// The terminal in the sandbox.
struct Terminal {
    client: Client,
    sandbox: String,
    number: u32,
}

impl Terminal {
    /// Is there until the shell has ended. This terminal is as it was afterwards, however that comes.
    async fn used(&self, ends: &mut Ends, changes: &mut Changes) -> Result<Ended> {
        let events = self.client.watch_terminal(&self.sandbox, self.number).await.map_err(ApiFailure)?;
        let raw = RawMode::enter(stdin()).context("putting the terminal into raw mode")?;
        Ok(select! {
            code = shown(events) => Ended::Itself(code?),
            gone = self.typed(typing()) => { gone?; Ended::BySignal(Signal::HUP) }
            signal = ends.next() => Ended::BySignal(signal),
            never = self.followed(&raw, changes) => match never? {},
        })
    }

    /// Sends what is typed, until this terminal is gone.
    async fn typed(&self, mut pieces: Receiver<Vec<u8>>) -> Result<()> {
        let mut characters = Characters::default();
        while let Some(mut piece) = pieces.recv().await {
            while let Ok(more) = pieces.try_recv() {
                piece.extend(more);
            }
            let text = characters.whole(&piece);
            if text.is_empty() {
                continue;
            }
            match self.client.type_into_terminal(&self.sandbox, self.number, &text).await {
                // The shell has ended, which its stream is about to tell.
                Err(error) if matches!(error.status(), Some(404 | 410)) => {
                    return pending().await;
                }
                sent => sent.map_err(ApiFailure)?,
            }
        }
        Ok(())
    }

    /// Follows the size of this terminal, and takes it again when this program was stopped and goes on.
    async fn followed(&self, raw: &RawMode<Stdin>, changes: &mut Changes) -> Result<Infallible> {
        loop {
            if changes.next().await == Change::Continued {
                raw.again().context("putting the terminal into raw mode")?;
            }
            match self.client.resize_terminal(&self.sandbox, self.number, size()).await {
                // It has ended; or is paused, and shows nothing whatever its size.
                Err(ClientError::Status { .. }) => {}
                resized => resized.map_err(ApiFailure)?,
            }
        }
    }
}

/// Shows what the terminal in the sandbox shows; gives the exit code of its shell.
async fn shown(mut events: SessionEvents) -> Result<i32> {
    let mut output = stdout();
    while let Some(event) = events.next().await.map_err(ApiFailure)? {
        match event {
            SessionEvent::Stdout(bytes) | SessionEvent::Stderr(bytes) => {
                output.write_all(&bytes).await.context("writing to the terminal")?;
                output.flush().await.context("writing to the terminal")?;
            }
            SessionEvent::Exit(code) => return Ok(code),
        }
    }
    Err(anyhow!("the daemon has ended the connection to the terminal"))
}

/// What is typed; the end is that of this terminal.
fn typing() -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel(PIECES);
    // A thread that nobody waits for: a read of a terminal cannot be called off.
    thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        while let Ok(length) = stdin().lock().read(&mut piece) {
            let read = piece.get(..length).unwrap_or_default().to_vec();
            if read.is_empty() || sender.blocking_send(read).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The size of this terminal, within what a terminal in a sandbox may have. One that does not tell has the usual one.
fn size() -> PtySize {
    let within = |length: u16| length.clamp(1, PtySize::MOST);
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            PtySize { cols: within(size.ws_col), rows: within(size.ws_row) }
        }
        _ => PtySize::DEFAULT,
    }
}

/// Signals that end this program.
struct Ends {
    terminate: Signals,
    interrupt: Signals,
    quit: Signals,
    hangup: Signals,
}

impl Ends {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }
}

/// What happens to this terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It has another size.
    Resized,
    /// This program was stopped, and goes on.
    Continued,
}

/// Signals that tell of changes.
struct Changes {
    resized: Signals,
    continued: Signals,
}

impl Changes {
    fn new() -> std::io::Result<Self> {
        let continued = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        Ok(Self { resized: signal(SignalKind::window_change())?, continued })
    }

    async fn next(&mut self) -> Change {
        select! {
            _ = self.resized.recv() => Change::Resized,
            _ = self.continued.recv() => Change::Continued,
        }
    }
}
