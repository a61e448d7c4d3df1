//! Answers as a stream of events (`text/event-stream`), in the form that every published reader understands.
//!
//! The strictest rules of all of them together: lines end with a line feed, a field's name is followed by exactly
//! one space, an event has one `event` and one `data` line and ends with an empty line. Some readers take every
//! character that Unicode calls a line separator for the end of a line, so JSON has those escaped. Nothing is
//! compressed, and each part is sent as soon as it is there.

use std::{convert::Infallible, io, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use tokio_util::sync::CancellationToken;

/// How long nothing may be sent before a comment is: readers give up after 60 seconds of silence, some proxies
/// after 30.
const QUIET: Duration = Duration::from_secs(15);

/// A comment, which every reader skips.
const PING: &[u8] = b": ping\n\n";

/// Answers with events until there are no more, then ends. Dropping the response, which is what happens when the
/// client is gone, drops `events`. They are asked for only as fast as the client reads.
pub(crate) fn respond(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let body = stream::unfold(Box::pin(events), |mut events| async {
        match tokio::time::timeout(QUIET, events.next()).await {
            Err(_) => Some((Ok::<_, Infallible>(Bytes::from_static(PING)), events)),
            Ok(part) => part.map(|part| (Ok(part), events)),
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies of one widespread kind collect answers before they pass them on, unless told not to.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// As [`respond`], where events may come for ever: the answer ends when the server is told to stop, which must not wait
/// for it, with a comment that says so.
pub(crate) fn respond_until_stop(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let mut response = respond(events);
    response.extensions_mut().insert(EndsWithServer::InOrder);
    response
}

/// Marks an answer that would go on for ever.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EndsWithServer {
    /// It is ours, and ends between two events.
    InOrder,
    /// It may be in the middle of anything, and must not look complete.
    BrokenOff,
}

/// What an answer that would go on for ever ends with.
const STOPPING: &[u8] = b": the server stops; ask again\n\n";

/// Has an answer that would go on for ever end at the stop.
pub(crate) fn end_at(stop: &CancellationToken, mut response: Response) -> Response {
    let Some(how) = response.extensions_mut().remove::<EndsWithServer>() else { return response };
    let stop = stop.clone();
    response.map(|body| {
        let last = stop.clone();
        let last = async move {
            last.is_cancelled().then(|| match how {
                EndsWithServer::InOrder => Ok(Bytes::from_static(STOPPING)),
                EndsWithServer::BrokenOff => Err(axum::Error::new("the server stops")),
            })
        };
        let parts = body.into_data_stream().take_until(stop.cancelled_owned());
        Body::from_stream(parts.chain(stream::once(last).filter_map(std::future::ready)))
    })
}

/// Appends a comment, for people: every reader skips it.
pub(crate) fn comment(to: &mut Vec<u8>, text: &str) {
    to.extend_from_slice(b": ");
    to.extend_from_slice(text.replace(char::is_control, " ").as_bytes());
    to.extend_from_slice(b"\n\n");
}

/// Appends an event.
pub(crate) fn event(to: &mut Vec<u8>, name: &str, data: &impl Serialize) {
    to.extend_from_slice(b"event: ");
    to.extend_from_slice(name.as_bytes());
    to.extend_from_slice(b"\ndata: ");
    let mut json = Serializer::with_formatter(&mut *to, OneLine);
    data.serialize(&mut json).expect("strings and numbers are always JSON");
    to.extend_from_slice(b"\n\n");
}

/// JSON that no reader takes for several lines.
struct OneLine;

impl Formatter for OneLine {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while !rest.is_ascii()
            && let Some(at) = rest.find(['\u{85}', '\u{2028}', '\u{2029}'])
        {
            let (before, separator) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            let mut characters = separator.chars();
            if let Some(character) = characters.next() {
                write!(writer, "\\u{:04x}", u32::from(character))?;
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use tokio::time::{Instant, sleep};

    use super::*;

    #[test]
    fn no_text_can_end_a_line_or_an_event() {
        let text: String = (0..=0x2100).filter_map(char::from_u32).collect();
        let mut bytes = Vec::new();
        event(&mut bytes, "output", &json!({ "data": text }));
        let line = bytes.strip_prefix(b"event: output\ndata: ").and_then(|rest| rest.strip_suffix(b"\n\n"));
        let line = std::str::from_utf8(line.expect("one event")).expect("text");
        assert!(
            !line.contains(|c: char| c < ' ' || ['\u{85}', '\u{2028}', '\u{2029}'].contains(&c)),
            "{line}"
        );
        let back: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(back["data"], text.as_str());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_sends_comments_and_ends_with_its_events() {
        let events = stream::once(async {
            sleep(Duration::from_secs(100)).await;
            Bytes::from_static(b"event: exit\ndata: {}\n\n")
        });
        let response = respond(events);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        let (mut body, mut last, mut all) = (response.into_body(), Instant::now(), Vec::new());
        while let Some(frame) = body.frame().await {
            assert!(last.elapsed() < Duration::from_secs(30));
            last = Instant::now();
            all.extend_from_slice(&frame.expect("a frame").into_data().expect("data"));
        }
        let text = String::from_utf8(all).expect("text");
        assert_eq!(text, format!("{}event: exit\ndata: {{}}\n\n", ": ping\n\n".repeat(6)));
    }
}
