//! Bulk frames: bytes that are passed on as they are, neither encoded nor copied from one buffer to another.

use serde::de::DeserializeOwned;

use crate::{Boot, ByteBuf, ClientFrame, CodecError, InitFrame, MAX_FRAME, Stream};

/// Length of the header of any frame.
pub(crate) const HEADER: usize = 4;

/// Whose bytes a bulk frame carries: what the highest byte of its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    /// A file's: [`ClientFrame::Data`] or [`InitFrame::Data`].
    File,
    /// For the standard input of a command: [`ClientFrame::Stdin`].
    Stdin,
    /// A command's [`InitFrame::Output`].
    Output(Stream),
}

impl Bulk {
    /// What goes over the wire before so many bytes.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] above [`MAX_FRAME`].
    pub fn header(self, length: usize) -> Result<[u8; HEADER], CodecError> {
        let word = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
        let [low, middle, high, _] = word.ok_or(CodecError::TooLong(length))?.to_le_bytes();
        Ok([low, middle, high, self.code()])
    }

    fn code(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Stdin => 2,
            Self::Output(Stream::Stdout) => 3,
            Self::Output(Stream::Stderr) => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::File),
            2 => Some(Self::Stdin),
            3 => Some(Self::Output(Stream::Stdout)),
            4 => Some(Self::Output(Stream::Stderr)),
            _ => None,
        }
    }
}

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// A body of so many bytes of CBOR.
    Encoded(usize),
    /// So many bytes as they are.
    Bulk(Bulk, usize),
}

impl Header {
    /// # Errors
    /// [`CodecError::TooLong`], also for a kind of bulk frame that is not known: to builds without any it is nothing
    /// else.
    pub(crate) fn parse(header: [u8; HEADER]) -> Result<Self, CodecError> {
        let [low, middle, high, code] = header;
        let length = u32::from_le_bytes([low, middle, high, 0]) as usize;
        let parsed = match code {
            0 => Some(Self::Encoded(length)),
            code => Bulk::from_code(code).map(|kind| Self::Bulk(kind, length)),
        };
        let parsed = parsed.ok_or_else(|| CodecError::TooLong(u32::from_le_bytes(header) as usize))?;
        if length <= MAX_FRAME { Ok(parsed) } else { Err(CodecError::TooLong(length)) }
    }
}

/// What a stream of frames consists of.
pub trait Frame: DeserializeOwned {
    /// The frame that these bytes are; `None` where they have no place.
    fn from_bulk(kind: Bulk, data: Vec<u8>) -> Option<Self>;
}

impl Frame for ClientFrame {
    fn from_bulk(kind: Bulk, data: Vec<u8>) -> Option<Self> {
        match kind {
            Bulk::File => Some(Self::Data(ByteBuf::from(data))),
            Bulk::Stdin => Some(Self::Stdin(ByteBuf::from(data))),
            Bulk::Output(_) => None,
        }
    }
}

impl Frame for InitFrame {
    fn from_bulk(kind: Bulk, data: Vec<u8>) -> Option<Self> {
        match kind {
            Bulk::File => Some(Self::Data(ByteBuf::from(data))),
            Bulk::Output(stream) => Some(Self::Output { stream, data: ByteBuf::from(data) }),
            Bulk::Stdin => None,
        }
    }
}

impl Frame for Boot {
    fn from_bulk(_kind: Bulk, _data: Vec<u8>) -> Option<Self> {
        None
    }
}
