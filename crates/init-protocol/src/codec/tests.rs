use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    Boot, Bulk, ByteBuf, Change, ChangeKind, ClientFrame, CommandInfo, Configure, Entry, EntryKind, Exec,
    Exit, Failure, FailureKind, FollowFrom, Hello, InitFrame, MAX_CHUNK, Request, Session, Stream, Target,
    TerminalSize,
};

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,40}"
}

fn bytes() -> impl Strategy<Value = ByteBuf> {
    prop::collection::vec(any::<u8>(), 0..10_000).prop_map(ByteBuf::from)
}

fn envs() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(text(), text(), 0..5)
}

fn target() -> impl Strategy<Value = Target> {
    (prop::option::of(text()), text()).prop_map(|(user, path)| Target { user, path })
}

fn exec() -> impl Strategy<Value = Exec> {
    (
        text(),
        prop::option::of(text()),
        prop::option::of(text()),
        envs(),
        any::<(bool, bool)>(),
        any::<Option<u64>>(),
    )
        .prop_map(|(command, user, cwd, envs, (stdin, background), timeout_ms)| Exec {
            command,
            user,
            cwd,
            envs,
            stdin,
            timeout_ms,
            background,
        })
}

fn size() -> impl Strategy<Value = TerminalSize> {
    any::<(u16, u16)>().prop_map(|(columns, rows)| TerminalSize { columns, rows })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Ping),
        Just(Request::StopClock),
        Just(Request::StartClock),
        Just(Request::Commands),
        (text(), envs()).prop_map(|(sandbox_id, envs)| Request::Configure(Configure { sandbox_id, envs })),
        exec().prop_map(Request::Exec),
        (exec(), prop::option::of(size()))
            .prop_map(|(exec, terminal)| Request::Session(Session { exec, terminal })),
        (any::<u32>(), any::<u64>())
            .prop_map(|(pid, piece)| Request::Follow { pid, from: FollowFrom::Piece(piece) }),
        any::<u32>().prop_map(|pid| Request::Follow { pid, from: FollowFrom::Now }),
        (any::<u32>(), size()).prop_map(|(pid, size)| Request::Resize { pid, size }),
        any::<u32>().prop_map(|pid| Request::Wait { pid }),
        any::<u32>().prop_map(|pid| Request::Kill { pid }),
        (any::<u32>(), bytes()).prop_map(|(pid, data)| Request::Stdin { pid, data }),
        any::<u32>().prop_map(|pid| Request::CloseStdin { pid }),
        target().prop_map(Request::Read),
        (target(), any::<u64>()).prop_map(|(target, limit)| Request::Write { target, limit }),
        (target(), any::<bool>()).prop_map(|(target, recursive)| Request::Watch { target, recursive }),
        target().prop_map(Request::Stat),
        target().prop_map(Request::Exists),
        (target(), any::<u32>()).prop_map(|(target, depth)| Request::List { target, depth }),
        target().prop_map(Request::Mkdir),
        target().prop_map(Request::Remove),
        (target(), text()).prop_map(|(from, to)| Request::Rename { from, to }),
    ]
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    prop_oneof![
        any::<(u16, u16)>().prop_map(|(version, revision)| ClientFrame::Hello(Hello { version, revision })),
        request().prop_map(ClientFrame::Request),
        bytes().prop_map(ClientFrame::Stdin),
        Just(ClientFrame::CloseStdin),
        any::<i32>().prop_map(ClientFrame::Signal),
        bytes().prop_map(ClientFrame::Data),
        Just(ClientFrame::End),
    ]
}

fn init_frame() -> impl Strategy<Value = InitFrame> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    let kind = prop_oneof![Just(EntryKind::File), Just(EntryKind::Directory)];
    prop_oneof![
        any::<(u16, u16)>().prop_map(|(version, revision)| InitFrame::Hello(Hello { version, revision })),
        text().prop_map(|message| InitFrame::Failed(Failure::new(FailureKind::NoSpace, message))),
        any::<u32>().prop_map(|pid| InitFrame::Started { pid }),
        (stream.clone(), bytes()).prop_map(|(stream, data)| InitFrame::Output { stream, data }),
        (any::<u64>(), stream, bytes()).prop_map(|(id, stream, data)| InitFrame::Piece { id, stream, data }),
        (any::<i32>(), any::<Option<i32>>(), any::<bool>()).prop_map(|(code, signal, timed_out)| {
            InitFrame::Exit(Exit { code, signal, timed_out, ..Exit::default() })
        }),
        (any::<u32>(), text(), envs(), any::<bool>()).prop_map(|(pid, command, envs, terminal)| {
            InitFrame::Command(CommandInfo { pid, command, envs, background: true, terminal })
        }),
        any::<u64>().prop_map(|size| InitFrame::Opened { size }),
        bytes().prop_map(InitFrame::Data),
        Just(InitFrame::End),
        (text(), any::<u64>()).prop_map(|(path, size)| InitFrame::Written { path, size }),
        (text(), text(), kind, any::<(u64, u32, i64)>()).prop_map(
            |(name, path, kind, (size, mode, modified))| {
                InitFrame::Entry(Entry { name, path, kind, size, mode, modified })
            }
        ),
        Just(InitFrame::Watching),
        (text(), any::<bool>()).prop_map(|(path, directory)| {
            InitFrame::Change(Change { kind: ChangeKind::Rename, path, directory })
        }),
        any::<bool>().prop_map(InitFrame::Bool),
        Just(InitFrame::Done),
    ]
}

/// A frame as it goes to a side that reads bulk frames.
fn bulky<T: Serialize>(frame: &T, bulk: Option<(Bulk, &ByteBuf)>) -> Vec<u8> {
    match bulk {
        Some((kind, data)) => [&kind.header(data.len()).unwrap(), data.as_slice()].concat(),
        None => encode(frame).unwrap(),
    }
}

fn bulky_client(frame: &ClientFrame) -> Vec<u8> {
    let bulk = match frame {
        ClientFrame::Data(data) => Some((Bulk::File, data)),
        ClientFrame::Stdin(data) => Some((Bulk::Stdin, data)),
        _ => None,
    };
    bulky(frame, bulk)
}

fn bulky_init(frame: &InitFrame) -> Vec<u8> {
    let bulk = match frame {
        InitFrame::Data(data) => Some((Bulk::File, data)),
        InitFrame::Output { stream, data } => Some((Bulk::Output(*stream), data)),
        _ => None,
    };
    bulky(frame, bulk)
}

/// Reads as from a socket that gives at most so many bytes at a time, to where the buffer says.
fn read_to_room<T: Frame>(mut wire: &[u8], most: usize) -> Result<(Vec<T>, FrameBuffer), CodecError> {
    let (mut buffer, mut frames) = (FrameBuffer::default(), Vec::new());
    loop {
        while let Some(frame) = buffer.next()? {
            frames.push(frame);
        }
        if wire.is_empty() {
            return Ok((frames, buffer));
        }
        let room = buffer.room();
        let free = room.capacity() - room.len();
        assert!(free > 0, "a full room would look like the end of the stream");
        let (portion, rest) = wire.split_at(wire.len().min(most).min(free));
        room.extend_from_slice(portion);
        wire = rest;
    }
}

proptest! {
    #[test]
    fn bulk_frames_mean_the_same_as_those_of_cbor(
        client in prop::collection::vec((client_frame(), any::<bool>()), 0..6),
        init in prop::collection::vec((init_frame(), any::<bool>()), 0..6),
        most in prop_oneof![1usize..500, 500usize..100_000],
    ) {
        let wire = client.iter().map(|(frame, bulk)| if *bulk { bulky_client(frame) } else { encode(frame).unwrap() });
        let (seen, rest) = read_to_room::<ClientFrame>(&wire.collect::<Vec<_>>().concat(), most).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(seen, client.into_iter().map(|(frame, _)| frame).collect::<Vec<_>>());
        let wire = init.iter().map(|(frame, bulk)| if *bulk { bulky_init(frame) } else { encode(frame).unwrap() });
        let (seen, rest) = read_to_room::<InitFrame>(&wire.collect::<Vec<_>>().concat(), most).unwrap();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(seen, init.into_iter().map(|(frame, _)| frame).collect::<Vec<_>>());
    }

    #[test]
    fn bulk_frames_are_the_same_whether_read_one_by_one_or_cut_anywhere(
        frames in prop::collection::vec(init_frame(), 0..6),
        cut in 1usize..20_000,
    ) {
        let wire: Vec<u8> = frames.iter().flat_map(bulky_init).collect();
        let mut stream = wire.as_slice();
        let mut blocking = Vec::new();
        while let Some(frame) = read_frame::<InitFrame>(&mut stream).unwrap() {
            blocking.push(frame);
        }
        prop_assert_eq!(&blocking, &frames);
        let (mut buffer, mut seen) = (FrameBuffer::default(), Vec::new());
        for portion in wire.chunks(cut) {
            buffer.extend(portion);
            while let Some(frame) = buffer.next::<InitFrame>().unwrap() {
                seen.push(frame);
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn the_rest_of_a_bulk_frame_can_be_taken_from_the_stream_itself(
        frames in prop::collection::vec(init_frame(), 0..6),
        most in prop_oneof![1usize..100, 100usize..20_000],
    ) {
        let wire: Vec<u8> = frames.iter().flat_map(bulky_init).collect();
        let (mut wire, mut buffer, mut seen) = (wire.as_slice(), FrameBuffer::default(), Vec::new());
        loop {
            if let Some(frame) = buffer.next::<InitFrame>().unwrap() {
                seen.push(frame);
            } else if let Some((kind, mut data, missing)) = buffer.take_incomplete() {
                let (rest, after) = wire.split_at(missing);
                data.extend_from_slice(rest);
                seen.push(InitFrame::from_bulk(kind, data).unwrap());
                wire = after;
            } else if wire.is_empty() {
                break;
            } else {
                let room = buffer.room();
                let (portion, rest) = wire.split_at(wire.len().min(most).min(room.capacity() - room.len()));
                room.extend_from_slice(portion);
                wire = rest;
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn a_cut_bulk_frame_is_reported_and_not_taken_for_the_end(
        data in bytes(),
        at in any::<prop::sample::Index>(),
        most in 1usize..5_000,
    ) {
        let frame = ClientFrame::Data(data);
        let wire = bulky_client(&frame);
        let at = at.index(wire.len() - 1) + 1;
        let cut = read_frame::<ClientFrame>(&mut &wire[..at]);
        let (seen, rest) = read_to_room::<ClientFrame>(&wire[..at], most).unwrap();
        if at < wire.len() {
            prop_assert!(matches!(cut, Err(CodecError::Truncated)), "{cut:?}");
            prop_assert!(seen.is_empty() && !rest.is_empty());
        } else {
            prop_assert_eq!(cut.unwrap(), Some(frame));
            prop_assert!(seen.len() == 1 && rest.is_empty());
        }
    }

    #[test]
    fn every_frame_of_the_daemon_survives_the_wire(frame in client_frame()) {
        let wire = encode(&frame).unwrap();
        prop_assert_eq!(read_frame::<ClientFrame>(&mut wire.as_slice()).unwrap(), Some(frame));
    }

    #[test]
    fn every_frame_of_init_survives_the_wire(frame in init_frame()) {
        let wire = encode(&frame).unwrap();
        prop_assert_eq!(read_frame::<InitFrame>(&mut wire.as_slice()).unwrap(), Some(frame));
    }

    #[test]
    fn frames_are_the_same_however_the_stream_is_cut(
        frames in prop::collection::vec(client_frame(), 0..6),
        cut in 1usize..500,
    ) {
        let wire: Vec<u8> = frames.iter().flat_map(|frame| encode(frame).unwrap()).collect();
        let mut buffer = FrameBuffer::default();
        let mut seen = Vec::new();
        for portion in wire.chunks(cut) {
            buffer.extend(portion);
            while let Some(frame) = buffer.next::<ClientFrame>().unwrap() {
                seen.push(frame);
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = decode::<ClientFrame>(&body);
        let _ = decode::<InitFrame>(&body);
        let _ = decode::<Boot>(&body);
        let _ = read_frame::<ClientFrame>(&mut body.as_slice());
        let mut buffer = FrameBuffer::default();
        buffer.extend(&body);
        while let Ok(Some(_)) = buffer.next::<InitFrame>() {}
        let _ = read_to_room::<ClientFrame>(&body, 100);
    }

    #[test]
    fn a_damaged_frame_never_panics(frame in client_frame(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut wire = encode(&frame).unwrap();
        let at = at.index(wire.len());
        wire[at] = with;
        let _ = read_frame::<ClientFrame>(&mut wire.as_slice());
    }

    #[test]
    fn a_cut_frame_is_reported_and_not_taken_for_the_end(frame in init_frame(), at in any::<prop::sample::Index>()) {
        let wire = encode(&frame).unwrap();
        let at = at.index(wire.len() - 1) + 1;
        let cut = read_frame::<InitFrame>(&mut &wire[..at]);
        if at < wire.len() {
            prop_assert!(matches!(cut, Err(CodecError::Truncated)), "{cut:?}");
        }
    }
}

#[test]
fn an_announced_length_over_the_limit_is_refused_before_anything_is_read() {
    let mut wire = Vec::from((MAX_FRAME as u32 + 1).to_le_bytes());
    wire.extend([0; 16]);
    assert!(matches!(read_frame::<ClientFrame>(&mut wire.as_slice()), Err(CodecError::TooLong(_))));
    let mut buffer = FrameBuffer::default();
    buffer.extend(&wire[..4]);
    assert!(matches!(buffer.next::<ClientFrame>(), Err(CodecError::TooLong(_))));
}

#[test]
fn a_bulk_frame_over_the_limit_is_neither_sent_nor_read_and_one_at_it_is() {
    for kind in [Bulk::File, Bulk::Stdin, Bulk::Output(Stream::Stdout), Bulk::Output(Stream::Stderr)] {
        assert!(
            matches!(kind.header(MAX_FRAME + 1), Err(CodecError::TooLong(length)) if length == MAX_FRAME + 1)
        );
        let mut header = kind.header(MAX_FRAME).unwrap();
        assert!(matches!(Header::parse(header), Ok(Header::Bulk(read, MAX_FRAME)) if read == kind));
        header[0] = 1;
        assert!(matches!(read_frame::<InitFrame>(&mut header.as_slice()), Err(CodecError::TooLong(_))));
        let mut buffer = FrameBuffer::default();
        buffer.extend(&header);
        assert!(matches!(buffer.next::<InitFrame>(), Err(CodecError::TooLong(_))));
    }
    let largest = ClientFrame::Data(ByteBuf::from(vec![7; MAX_FRAME]));
    let (seen, rest) = read_to_room::<ClientFrame>(&bulky_client(&largest), usize::MAX).unwrap();
    assert!(seen == [largest] && rest.is_empty());
}

#[test]
fn bulk_frames_of_no_known_kind_and_of_the_other_side_are_refused() {
    let read = |code: u8| read_frame::<ClientFrame>(&mut [1, 0, 0, code, b'x'].as_slice());
    assert_eq!(read(1).unwrap(), Some(ClientFrame::Data(ByteBuf::from("x"))));
    assert_eq!(read(2).unwrap(), Some(ClientFrame::Stdin(ByteBuf::from("x"))));
    for output in [3, 4] {
        assert!(matches!(read(output), Err(CodecError::Malformed(_))));
    }
    for unknown in 5..=u8::MAX {
        assert!(matches!(read(unknown), Err(CodecError::TooLong(length)) if length > MAX_FRAME));
    }
    for (code, frame) in [
        (1, Some(InitFrame::Data(ByteBuf::from("x")))),
        (2, None),
        (3, Some(InitFrame::Output { stream: Stream::Stdout, data: ByteBuf::from("x") })),
        (4, Some(InitFrame::Output { stream: Stream::Stderr, data: ByteBuf::from("x") })),
    ] {
        assert_eq!(read_frame::<InitFrame>(&mut [1, 0, 0, code, b'x'].as_slice()).ok().flatten(), frame);
        assert!(matches!(read_frame::<Boot>(&mut [0, 0, 0, code].as_slice()), Err(CodecError::Malformed(_))));
    }
}

#[test]
fn an_announced_bulk_frame_takes_no_more_memory_than_a_chunk_before_it_arrives() {
    let mut buffer = FrameBuffer::default();
    buffer.extend(&Bulk::File.header(MAX_FRAME).unwrap());
    assert_eq!(buffer.next::<ClientFrame>().unwrap(), None);
    assert!(buffer.room().capacity() <= MAX_BULK + 64);
}

#[test]
fn of_full_bulk_frames_in_a_row_only_little_is_moved() {
    let frames = vec![ClientFrame::Data(ByteBuf::from(vec![7; MAX_BULK])); 5];
    let wire: Vec<u8> = frames.iter().flat_map(bulky_client).collect();
    let (mut wire, mut buffer, mut seen) = (wire.as_slice(), FrameBuffer::default(), Vec::new());
    while !wire.is_empty() {
        let room = buffer.room();
        let (portion, rest) = wire.split_at(wire.len().min(room.capacity() - room.len()));
        // Into the buffer for small frames only the beginning of the first, and headers.
        assert!(seen.is_empty() || portion.len() <= 100 || portion.len() > MAX_BULK - 100);
        room.extend_from_slice(portion);
        wire = rest;
        while let Some(frame) = buffer.next::<ClientFrame>().unwrap() {
            seen.push(frame);
        }
    }
    assert!(seen == frames);
}

#[test]
fn a_frame_over_the_limit_is_not_sent_and_a_full_chunk_is() {
    assert!(encode(&ClientFrame::Data(ByteBuf::from(vec![0; MAX_CHUNK]))).is_ok());
    let long = ClientFrame::Data(ByteBuf::from(vec![0; MAX_FRAME]));
    assert!(matches!(encode(&long), Err(CodecError::TooLong(_))));
}

#[test]
fn an_announced_count_does_not_allocate() {
    // A map of 2^62 entries, and a byte string of 2^62 bytes, both announced in a few bytes.
    for head in [0xbb, 0x5b, 0x9b, 0x7b] {
        let mut body = vec![head];
        body.extend((1u64 << 62).to_be_bytes());
        assert!(decode::<ClientFrame>(&body).is_err());
        assert!(decode::<BTreeMap<String, String>>(&body).is_err());
        assert!(decode::<ByteBuf>(&body).is_err());
        assert!(decode::<Vec<ByteBuf>>(&body).is_err());
    }
}

#[test]
fn deep_nesting_is_refused() {
    let body = vec![0x81; 100_000];
    assert!(decode::<ClientFrame>(&body).is_err());
    assert!(decode::<Boot>(&body).is_err());
}

#[test]
fn bytes_after_the_value_are_refused() {
    let mut body = encode(&ClientFrame::End).unwrap()[4..].to_vec();
    assert_eq!(decode::<ClientFrame>(&body).unwrap(), ClientFrame::End);
    body.push(0);
    assert!(decode::<ClientFrame>(&body).is_err());
}

#[test]
fn a_kind_of_failure_from_a_newer_init_reads_as_io() {
    let body = encode(&BTreeMap::from([("kind", "of_tomorrow"), ("message", "m")])).unwrap();
    assert_eq!(decode::<Failure>(&body[4..]).unwrap(), Failure::new(FailureKind::Io, "m"));
}

#[test]
fn a_greeting_from_before_there_were_revisions_is_revision_0_and_a_newer_one_is_understood_by_it() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Older {
        version: u16,
    }
    let older = encode(&Older { version: 1 }).unwrap();
    assert_eq!(decode::<Hello>(&older[4..]).unwrap(), Hello { version: 1, revision: 0 });
    let newer = encode(&Hello::CURRENT).unwrap();
    assert_eq!(decode::<Older>(&newer[4..]).unwrap(), Older { version: crate::VERSION });
}
