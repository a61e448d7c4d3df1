//! A stream of requests has one meaning, however it arrives and whoever reads it.
//!
//! The stream is read as the proxy reads it: head after head, each body between them, until something is refused or
//! goes on as another protocol. What the proxy would send on is then read by hyper, which must see the same requests
//! and nothing else. The client's own bytes must mean the same to hyper, if it takes them.

use sniff::{
    Progress, Refusal,
    http::{Body, BodyEvent, BodyReader, HeadLimits, LAST_CHUNK, RequestHead, RequestReader, chunk_header},
};

use crate::{
    second_server::{self, Seen},
    segments::{ends, sized},
};

pub fn check(input: &[u8]) {
    let Some((size, bytes)) = sized(input) else { return };
    let whole = read(bytes, bytes.len().max(1));
    let pieces = read(bytes, size);
    assert_eq!((&whole.requests, whole.end), (&pieces.requests, pieces.end));
    if whole.requests.is_empty() {
        return;
    }
    let seen = whole.requests.iter().map(seen).collect::<Vec<_>>();
    for sent in [&whole.sent, &pieces.sent] {
        let theirs = second_server::read(sent);
        // It may refuse a target that it cannot split, but not see anything else.
        assert!(seen.starts_with(&theirs), "sent on: {theirs:?}\njudged: {seen:?}");
    }
    let theirs = second_server::read(bytes);
    let common = theirs.len().min(seen.len());
    assert_eq!(
        theirs[..common],
        seen[..common],
        "the server sees other requests than those that were judged"
    );
}

#[derive(Debug, PartialEq)]
struct Request {
    head: RequestHead,
    body: Vec<u8>,
}

/// What came of a stream.
struct Stream {
    requests: Vec<Request>,
    end: End,
    /// What the server is sent of the complete requests.
    sent: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// More of a head or body is awaited.
    NeedMore,
    Refused(Refusal),
    /// Another protocol is offered, after which the bytes are not for this reader.
    Offer,
}

fn read(bytes: &[u8], size: usize) -> Stream {
    let mut stream = Stream { requests: Vec::new(), end: End::NeedMore, sent: Vec::new() };
    let mut start = 0;
    loop {
        match read_one(&bytes[start..], start, size) {
            Ok((request, consumed, sent)) => {
                start += consumed;
                stream.sent.extend(sent);
                let offer = request.head.upgrade.is_some();
                stream.requests.push(request);
                if offer {
                    stream.end = End::Offer;
                    return stream;
                }
            }
            Err(end) => {
                stream.end = end;
                return stream;
            }
        }
    }
}

/// Reads the request at the front of `bytes`, which are `before` bytes into the stream.
fn read_one(bytes: &[u8], before: usize, size: usize) -> Result<(Request, usize, Vec<u8>), End> {
    // Segments end where they end in the stream, not in the request.
    let first = (size - before % size).min(bytes.len());
    let ends = || std::iter::once(first).chain(ends(&bytes[first..], size).map(move |end| first + end));
    let mut reader = RequestReader::new(HeadLimits::default());
    let head = ends()
        .find_map(|end| match reader.read(&bytes[..end]) {
            Progress::NeedMore => None,
            Progress::Done(head) => Some(Ok(head)),
            Progress::Refused(refusal) => Some(Err(End::Refused(refusal))),
        })
        .unwrap_or(Err(End::NeedMore))?;

    let mut sent = head.write(None, false);
    let mut body = BodyReader::new(head.body);
    let (mut data, mut at) = (Vec::new(), head.consumed);
    for end in ends().filter(|end| *end >= head.consumed) {
        let mut input = &bytes[at..end];
        loop {
            match body.next(&mut input).map_err(End::Refused)? {
                BodyEvent::Data(part) => {
                    data.extend_from_slice(part);
                    send(&mut sent, head.body, part);
                }
                BodyEvent::NeedMore => break,
                BodyEvent::End => {
                    if head.body == Body::Chunked {
                        sent.extend_from_slice(LAST_CHUNK);
                    }
                    let consumed = end - input.len();
                    return Ok((Request { head, body: data }, consumed, sent));
                }
            }
        }
        at = end;
    }
    Err(End::NeedMore)
}

fn send(sent: &mut Vec<u8>, body: Body, part: &[u8]) {
    if body == Body::Chunked {
        sent.extend(chunk_header(part.len()));
        sent.extend_from_slice(part);
        sent.extend_from_slice(b"\r\n");
    } else {
        sent.extend_from_slice(part);
    }
}

fn seen(request: &Request) -> Seen {
    let target = match &request.head.target {
        sniff::http::Target::Origin(target) => target.clone(),
        sniff::http::Target::Asterisk => "*".to_owned(),
    };
    Seen {
        method: request.head.method.clone(),
        target,
        hosts: vec![(request.head.host.clone(), request.head.port)],
        body: request.body.clone(),
    }
}
