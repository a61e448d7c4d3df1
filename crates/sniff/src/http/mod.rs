//! HTTP/1 messages: strict readers of heads and bodies, and a writer of clean heads.
//!
//! A reader of heads looks at the caller's buffer, which grows from the first byte of the head; it remembers how
//! far it has looked. Lines end in CRLF only, nothing is folded, and framing that could be read in two ways
//! (RFC 9112 section 11) is refused.

mod body;
mod head;
mod request;
mod response;

pub use body::{BodyEvent, BodyReader, LAST_CHUNK, chunk_header};
pub use head::{HeadLimits, Header, Version};
pub use request::{Body, RequestHead, RequestReader, Target, Upgrade};
pub use response::{ResponseBody, ResponseHead, ResponseReader};
