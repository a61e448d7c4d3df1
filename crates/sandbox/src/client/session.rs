//! Sessions: commands in the background whose output can be followed.

use bytes::Bytes;
use init_protocol::{FollowFrom, InitFrame, Request, Session, Stream, TerminalSize};

use super::{
    Connection, Frames, InitClient, Input,
    command::{Exec, ExitStatus, request, started},
    unexpected,
};
use crate::error::SandboxError;

/// What happens in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// It put something out.
    Output {
        /// The number of this piece; one that is missing was too old to be kept.
        id: u64,
        /// Where; of a terminal always standard output.
        stream: Stream,
        /// What, at most 1 MiB.
        data: Bytes,
    },
    /// It ended; nothing follows.
    Exit(ExitStatus),
}

/// Somebody who follows a session. Dropping it changes nothing for the session.
#[derive(Debug)]
pub struct Follower {
    frames: Frames,
    /// Closing it would mean that nobody follows any more.
    _input: Input,
    ended: bool,
}

impl Follower {
    /// What happens next; `None` after the exit. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the sandbox ends or its init breaks the protocol.
    pub async fn next(&mut self) -> Result<Option<SessionEvent>, SandboxError> {
        if self.ended {
            return Ok(None);
        }
        match self.frames.next().await? {
            InitFrame::Piece { id, stream, data } => {
                Ok(Some(SessionEvent::Output { id, stream, data: data.into_vec().into() }))
            }
            InitFrame::Exit(exit) => {
                self.ended = true;
                Ok(Some(SessionEvent::Exit(exit.into())))
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl InitClient {
    /// Starts a session, with a terminal of this size or with pipes.
    pub(crate) async fn session(
        &self,
        exec: Exec,
        terminal: Option<TerminalSize>,
    ) -> Result<u32, SandboxError> {
        let session = Session { exec: request(exec, true), terminal };
        started(self.ask(Request::Session(session)).await?)
    }

    /// Follows a session.
    pub(crate) async fn follow(&self, pid: u32, from: FollowFrom) -> Result<Follower, SandboxError> {
        let Connection { mut frames, input } = self.begin(Request::Follow { pid, from }).await?;
        started(frames.next().await?)?;
        Ok(Follower { frames, _input: input, ended: false })
    }
}
