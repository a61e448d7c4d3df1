//! Frames between the daemon and the init of a sandbox.
//!
//! The daemon connects to init's unix stream socket; **one connection carries one operation**. Every frame is
//! a little-endian `u32`, whose lower three bytes are a length (at most [`MAX_FRAME`]), followed by that many bytes.
//! Where the highest byte is 0 they are CBOR; otherwise it is a **bulk frame**, they are a file's or a command's, and
//! the highest byte says whose ([`Bulk`]). A bulk frame means the same as the frame of CBOR that carries these bytes;
//! it is sent only to a side whose revision is at least [`BULK_REVISION`]. The first frame of each side is a [`Hello`]; neither side waits for the other's before it goes on, so a request costs no extra
//! round trip. After it the daemon sends one [`Request`] and, where the table says so, further [`ClientFrame`]s;
//! init answers with [`InitFrame`]s. Instead of any answer, and at any time before the last frame, init may
//! send [`InitFrame::Failed`], which ends the operation; a daemon that finds the connection closed while it sends
//! reads what is waiting, for that is the reason. Closing the connection, even half, gives the operation up.
//!
//! | request | further frames to init | frames from init |
//! |---|---|---|
//! | [`Request::Ping`], [`Request::Configure`], [`Request::StopClock`], [`Request::StartClock`] | | `Done` |
//! | [`Request::Exec`] | `Stdin`\*, `CloseStdin`, `Signal`\* | `Started`, `Output`\*, `Exit` |
//! | [`Request::Exec`], `background` | | `Started` |
//! | [`Request::Wait`] | | `Output`\*, `Exit` (when the command has ended) |
//! | [`Request::Session`] | | `Started` |
//! | [`Request::Follow`] | | `Started`, `Piece`\*, `Exit` (when the command has ended) |
//! | [`Request::Resize`] | | `Done` |
//! | [`Request::Commands`] | | `Command`\*, `Done` |
//! | [`Request::Kill`] | | `Bool`: whether it was running |
//! | [`Request::Stdin`], [`Request::CloseStdin`] | | `Done` |
//! | [`Request::Read`] | | `Opened`, `Data`\*, `End` |
//! | [`Request::Write`] | `Data`\*, `End` | `Written` |
//! | [`Request::Watch`] | | `Watching`, `Change`\*, `End` (when the directory is gone) |
//! | [`Request::Stat`] | | `Entry` |
//! | [`Request::Exists`] | | `Bool` |
//! | [`Request::List`] | | `Entry`\*, `Done` |
//! | [`Request::Mkdir`] | | `Bool`: whether it was created |
//! | [`Request::Remove`] | | `Bool`: whether it was there |
//! | [`Request::Rename`] | | `Entry`: the new one |
//!
//! The two sides do not trust each other: every length is checked before it is used, decoding never panics
//! and never allocates more than a small multiple of the frame it was given.

mod bulk;
mod codec;
mod frame;

pub use bulk::{Bulk, Frame};
pub use codec::{CodecError, FrameBuffer, decode, encode, read_frame, write_frame};
pub use frame::{
    Boot, Change, ChangeKind, ClientFrame, CommandInfo, Configure, Entry, EntryKind, Exec, Exit, Failure,
    FailureKind, FollowFrom, Hello, InitFrame, Request, Session, Stream, Target, TerminalSize,
};
pub use serde_bytes::ByteBuf;

/// Version of this protocol. Sides of different versions do not talk: init answers [`FailureKind::Version`].
pub const VERSION: u16 = 1;

/// How much of this version's protocol the sender knows: a higher revision has further requests and fields, and
/// changes nothing of the lower ones. An init outlives the daemon that started it, so the next daemon asks it only for
/// what its revision has. A daemon asks for what it knows itself, so its revision tells an init only whether it reads
/// bulk frames.
pub const REVISION: u16 = 4;

/// The lowest [`REVISION`] of a side that reads bulk frames.
pub const BULK_REVISION: u16 = 4;

/// Longest body of a frame, in bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// Most payload bytes a sender puts into one `Data`, `Output` or `Stdin` frame of CBOR.
pub const MAX_CHUNK: usize = 64 << 10;

/// Most payload bytes a sender puts into one bulk frame. A reader takes up to [`MAX_FRAME`], and has memory for so
/// much at once.
pub const MAX_BULK: usize = 256 << 10;

/// What a sender of a file asks the kernel for as the send buffer of its socket, in bytes: how far the two sides may be
/// apart before one waits for the other. The kernel counts twice as many, for its own memory with each piece, and grants
/// no more than `net.core.wmem_max`.
pub const SEND_BUFFER: usize = 2 << 20;

/// Longest path, in bytes (the kernel's `PATH_MAX`, its terminating NUL included).
pub const MAX_PATH: usize = 4096;

/// Longest command line, in bytes: the kernel takes no longer single argument (`MAX_ARG_STRLEN`).
pub const MAX_COMMAND: usize = (128 << 10) - 1;

/// Most entries of one [`Request::List`]; a longer listing fails with [`FailureKind::TooLarge`].
pub const MAX_ENTRIES: usize = 100_000;

/// Most directories that one [`Request::Watch`] watches; more fail with [`FailureKind::TooLarge`].
pub const MAX_WATCHED: usize = 4096;

/// Bytes of each output stream of a background command that init keeps: the last ones.
pub const KEPT_OUTPUT: usize = 1 << 20;

/// Bytes of output of a session with pipes that init keeps; each piece counts for its length and
/// [`PIECE_COST`].
pub const KEPT_SESSION: usize = 4 << 20;

/// Bytes of output of a session with a terminal that init keeps, counted in the same way.
pub const KEPT_TERMINAL: usize = 256 << 10;

/// What a piece of output costs besides its bytes.
pub const PIECE_COST: usize = 64;

/// Ended background commands that init remembers for [`Request::Wait`]; the oldest is forgotten first.
pub const KEPT_COMMANDS: usize = 256;

/// Exit code of a command that was killed because its time was up, as timeout(1) has it.
pub const TIMEOUT_EXIT_CODE: i32 = 124;

/// User of an operation that names none.
pub const DEFAULT_USER: &str = "user";

/// Descriptor on which init finds its listening unix stream socket.
pub const SOCKET_FD: i32 = 3;

/// Descriptor from which init reads one frame, its [`Boot`], until end of file or not.
pub const BOOT_FD: i32 = 4;

/// Descriptor to which init writes one byte, [`READY`], as soon as it serves; then it closes it.
pub const READY_FD: i32 = 5;

/// What init writes to [`READY_FD`]. End of file without it means that init has failed.
pub const READY: u8 = b'R';
