//! A body of a length that was announced.

use axum::BoxError;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};

/// The first `length` bytes of `content`, and no more: it may have grown since its length was looked at. Fails where it ends
/// before, so that the answer breaks off instead of looking complete.
pub(crate) fn exactly<E: Into<BoxError> + Send + 'static>(
    length: u64,
    content: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send {
    stream::try_unfold((content, length), async |(mut content, left)| {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut part) = content.try_next().await.map_err(Into::into)? else {
            return Err(format!("the content ended {left} bytes before its end").into());
        };
        part.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - u64::try_from(part.len()).unwrap_or(left);
        Ok(Some((part, (content, left))))
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    async fn got(length: u64, parts: &[&'static str]) -> Result<Vec<Bytes>, BoxError> {
        let parts: Vec<_> =
            parts.iter().map(|part| Ok::<_, Infallible>(Bytes::from_static(part.as_bytes()))).collect();
        exactly(length, stream::iter(parts)).try_collect().await
    }

    #[tokio::test]
    async fn what_was_announced_is_given_whole_or_breaks_off() {
        for (length, parts, expected) in [
            (6, ["abc", "def"].as_slice(), ["abc", "def"].as_slice()),
            // It has grown.
            (6, &["abc", "def", "ghi"], &["abc", "def"]),
            (4, &["abc", "def"], &["abc", "d"]),
            (0, &["abc"], &[]),
        ] {
            assert_eq!(got(length, parts).await.unwrap(), expected, "{length} of {parts:?}");
        }
        for parts in [["abc", "de"].as_slice(), &[]] {
            assert!(got(6, parts).await.is_err(), "{parts:?}");
        }
    }
}
