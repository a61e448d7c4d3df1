//! The fields of a TLS message, read from the front of a slice.

use crate::Refusal;

/// What is left of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// All of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whatever is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(TRUNCATED)?;
        self.0 = tail;
        Ok(head)
    }

    /// A number of one byte.
    pub(crate) fn u8(&mut self) -> Result<u8, Refusal> {
        let (head, tail) = self.0.split_first().ok_or(TRUNCATED)?;
        self.0 = tail;
        Ok(*head)
    }

    /// A number of two bytes.
    pub(crate) fn u16(&mut self) -> Result<u16, Refusal> {
        let (head, tail) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = tail;
        Ok(u16::from_be_bytes(*head))
    }

    /// A vector whose length is a number of one byte.
    pub(crate) fn vector8(&mut self) -> Result<Self, Refusal> {
        let length = self.u8()?;
        self.bytes(usize::from(length)).map(Self)
    }

    /// A vector whose length is a number of two bytes.
    pub(crate) fn vector16(&mut self) -> Result<Self, Refusal> {
        let length = self.u16()?;
        self.bytes(usize::from(length)).map(Self)
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(Refusal::tls("bytes are left over in a field")) }
    }
}

const TRUNCATED: Refusal = Refusal::tls("a field is longer than what holds it");
