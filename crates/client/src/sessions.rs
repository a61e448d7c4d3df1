//! Commands with pipes, whose output is followed while they run, and what comes of any session.

use std::collections::VecDeque;

use api::{Acknowledged, Killed, OutputPiece, StdioStarted};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::{Method, Response, body::Incoming};
use serde::Deserialize;
use serde_json::json;

use crate::{Client, ClientError, NewCommand, http::Content, sandboxes::path};

/// The longest line of a stream of events, in bytes: a piece of output in base64.
const LONGEST_LINE: usize = 8 << 20;

/// What happens in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// It has written to its standard output; or its terminal, if it has one, shows this.
    Stdout(Vec<u8>),
    /// It has written to its standard error.
    Stderr(Vec<u8>),
    /// It has ended, with this exit code.
    Exit(i32),
}

/// What happens in a session, from some piece of its output on.
#[derive(Debug)]
pub struct SessionEvents {
    client: Client,
    body: Incoming,
    parser: Parser,
    /// The number of the last piece of output.
    last: u64,
}

impl Client {
    /// Starts a command with pipes, and gives the name by which it is followed. It runs on when nobody follows it. A
    /// time-out of the command has no effect.
    pub async fn start_stdio(&self, id: &str, command: &NewCommand) -> Result<String, ClientError> {
        let started: StdioStarted =
            self.call(Method::POST, &path(id, "/stdio")?, Content::json(command)).await?;
        Ok(started.cmd_id)
    }

    /// Follows such a command, from the piece of output after the one with this number; 0 is from the beginning.
    pub async fn follow_stdio(
        &self,
        id: &str,
        command: &str,
        after: u64,
    ) -> Result<SessionEvents, ClientError> {
        let path = stdio(id, command, &format!("/stream?last_entry_id={after}"))?;
        let response = self.send(Method::GET, &path, Content::none()).await?;
        Ok(SessionEvents::new(self, response, after))
    }

    /// Writes to the standard input of such a command.
    pub async fn write_stdio(&self, id: &str, command: &str, bytes: &[u8]) -> Result<(), ClientError> {
        let body = Content::json(&json!({ "data": STANDARD.encode(bytes) }));
        let Acknowledged { .. } = self.call(Method::POST, &stdio(id, command, "/stdin")?, body).await?;
        Ok(())
    }

    /// Ends the standard input of such a command.
    pub async fn close_stdio(&self, id: &str, command: &str) -> Result<(), ClientError> {
        let path = stdio(id, command, "/stdin/close")?;
        let Acknowledged { .. } = self.call(Method::POST, &path, Content::none()).await?;
        Ok(())
    }

    /// Kills such a command; false if it had ended.
    pub async fn kill_stdio(&self, id: &str, command: &str) -> Result<bool, ClientError> {
        let Killed { killed } = self.call(Method::DELETE, &stdio(id, command, "")?, Content::none()).await?;
        Ok(killed)
    }
}

fn stdio(id: &str, command: &str, rest: &str) -> Result<String, ClientError> {
    let is_name = !command.is_empty() && command.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !is_name {
        return Err(ClientError::Id(command.to_owned()));
    }
    path(id, &format!("/stdio/{command}{rest}"))
}

impl SessionEvents {
    pub(crate) fn new(client: &Client, response: Response<Incoming>, after: u64) -> Self {
        Self { client: client.clone(), body: response.into_body(), parser: Parser::default(), last: after }
    }

    /// What happens next; `None` when the stream ends without the end of the command: the daemon stops, or has lost it.
    /// It can be followed again from [`Self::last`].
    ///
    /// # Errors
    /// When the connection breaks off, or what comes is no event.
    pub async fn next(&mut self) -> Result<Option<SessionEvent>, ClientError> {
        loop {
            if let Some((event, number)) = self.parser.found.pop_front() {
                self.last = number.unwrap_or(self.last);
                return Ok(Some(event));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|source| self.client.broken(source))?;
            if let Ok(bytes) = frame.into_data() {
                self.parser.feed(&bytes).map_err(|problem| self.client.odd(problem))?;
            }
        }
    }

    /// The number of the last piece of output that came.
    pub fn last(&self) -> u64 {
        self.last
    }
}

/// Reads server-sent events as the daemon writes them: a line with the name, a line with the data, an empty line.
#[derive(Debug, Default)]
struct Parser {
    rest: BytesMut,
    name: String,
    /// Events, and the numbers of those that are output.
    found: VecDeque<(SessionEvent, Option<u64>)>,
}

#[derive(Deserialize)]
struct Exit {
    exit_code: i32,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            let line = std::str::from_utf8(&line).map_err(|error| error.to_string())?;
            self.line(line.trim_end_matches(['\r', '\n']))?;
        }
        if self.rest.len() > LONGEST_LINE {
            return Err(format!("an event is longer than {} MiB", LONGEST_LINE >> 20));
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(name) = line.strip_prefix("event: ") {
            name.clone_into(&mut self.name);
        } else if let Some(data) = line.strip_prefix("data: ") {
            let event = event(&self.name, data)?;
            self.found.extend(event);
        }
        Ok(())
    }
}

fn event(name: &str, data: &str) -> Result<Option<(SessionEvent, Option<u64>)>, String> {
    let output = || {
        let piece: OutputPiece = serde_json::from_str(data).map_err(|error| error.to_string())?;
        let bytes = STANDARD.decode(&piece.data).map_err(|error| error.to_string())?;
        Ok::<_, String>((bytes, piece.entry_id))
    };
    Ok(match name {
        // What terminals show is "data".
        "stdout" | "data" => Some(output()?).map(|(bytes, number)| (SessionEvent::Stdout(bytes), number)),
        "stderr" => Some(output()?).map(|(bytes, number)| (SessionEvent::Stderr(bytes), number)),
        "exit" => {
            let Exit { exit_code } = serde_json::from_str(data).map_err(|error| error.to_string())?;
            Some((SessionEvent::Exit(exit_code), None))
        }
        // Of a daemon that knows more.
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut_into_pieces() {
        let text = b": hello\n\nevent: stdout\ndata: {\"data\":\"b25l\",\"entry_id\":1}\n\nevent: stderr\n\
            data: {\"data\":\"/wA=\",\"entry_id\":3}\n\nevent: later\ndata: {}\n\n: ping\n\n\
            event: data\ndata: {\"data\":\"JCA=\"}\n\nevent: exit\n\
            data: {\"exit_code\":7}\n\n";
        let expected = [
            (SessionEvent::Stdout(b"one".to_vec()), Some(1)),
            (SessionEvent::Stderr(vec![0xff, 0]), Some(3)),
            (SessionEvent::Stdout(b"$ ".to_vec()), None),
            (SessionEvent::Exit(7), None),
        ];
        for size in 1..=text.len() {
            let mut parser = Parser::default();
            for piece in text.chunks(size) {
                parser.feed(piece).unwrap();
            }
            assert_eq!(parser.found, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        for text in
            ["event: exit\ndata: {}\n", "event: stdout\ndata: {\"data\":\"*\"}\n", "event: stdout\ndata: x\n"]
        {
            assert!(Parser::default().feed(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Parser::default().feed(b"data: \xff\n").is_err());
        let mut endless = Parser::default();
        endless.feed(&vec![b'x'; LONGEST_LINE]).unwrap();
        assert!(endless.feed(b"x").is_err());
    }
}
