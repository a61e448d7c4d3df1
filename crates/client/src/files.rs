//! Files in a sandbox, as streams.

use api::{Entry, Written};
use form_urlencoded::Serializer;
use futures_util::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Method, body::Frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::{Client, ClientError, http::Content, sandboxes::path};

/// How much of a file is read at once, in bytes.
const PART: usize = 64 << 10;

impl Client {
    /// What a path in a sandbox is, as `user` sees it; `None` is `user`.
    pub async fn file(&self, id: &str, file: &str, user: Option<&str>) -> Result<Entry, ClientError> {
        let path = path(id, &format!("/files/info?{}", query(file, user)))?;
        self.call(Method::GET, &path, Content::none()).await
    }

    /// What is in a directory, down to `depth` levels, as `user` sees it; `None` is `user`.
    pub async fn list_files(
        &self,
        id: &str,
        directory: &str,
        user: Option<&str>,
        depth: u32,
    ) -> Result<Vec<Entry>, ClientError> {
        let path = path(id, &format!("/files/list?{}&depth={depth}", query(directory, user)))?;
        self.call(Method::GET, &path, Content::none()).await
    }

    /// Copies a file from a sandbox to `target`, and says how many bytes it has.
    pub async fn read_file(
        &self,
        id: &str,
        file: &str,
        user: Option<&str>,
        target: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, ClientError> {
        let path = path(id, &format!("/files/raw?{}", query(file, user)))?;
        let mut body = self.send(Method::GET, &path, Content::none()).await?.into_body();
        let mut size = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| self.broken(source))?;
            if let Ok(part) = frame.into_data() {
                target.write_all(&part).await.map_err(ClientError::Local)?;
                size += u64::try_from(part.len()).expect("a length in memory fits");
            }
        }
        target.flush().await.map_err(ClientError::Local)?;
        Ok(size)
    }

    /// Copies all of `source` to a file in a sandbox, with its parent directories.
    pub async fn write_file(
        &self,
        id: &str,
        file: &str,
        user: Option<&str>,
        source: impl AsyncRead + Send + 'static,
    ) -> Result<Written, ClientError> {
        let path = path(id, &format!("/files/raw?{}", query(file, user)))?;
        let parts = ReaderStream::with_capacity(source, PART).map_ok(Frame::data);
        let body = BodyExt::boxed_unsync(StreamBody::new(parts));
        self.call(Method::PUT, &path, Content { body, kind: Some("application/octet-stream") }).await
    }
}

fn query(file: &str, user: Option<&str>) -> String {
    let mut query = Serializer::new(String::new());
    query.append_pair("path", file).extend_pairs(user.map(|user| ("username", user)));
    query.finish()
}
