//! One request on one connection.

use std::{io, time::Duration};

use api::ErrorBody;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::{Client, ClientError};

/// How long a connection may take, handshakes included.
const CONNECTING: Duration = Duration::from_secs(20);
/// The longest JSON answer, in bytes: the output of a command is the largest.
const LONGEST: usize = 256 << 20;
/// The longest answer that is an error.
const LONGEST_ERROR: usize = 1 << 20;

/// What is sent.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body, with what it is.
pub(crate) struct Content {
    pub(crate) body: Body,
    pub(crate) kind: Option<&'static str>,
}

impl Content {
    /// Nothing.
    pub(crate) fn none() -> Self {
        Self { body: boxed(Bytes::new()), kind: None }
    }

    /// A value as JSON.
    pub(crate) fn json(value: &impl Serialize) -> Self {
        let text = serde_json::to_vec(value).expect("the API's values are JSON");
        Self { body: boxed(text.into()), kind: Some("application/json") }
    }
}

fn boxed(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// The header with the key.
pub(crate) fn authorization(key: &SecretString) -> Result<HeaderValue, ClientError> {
    let value =
        HeaderValue::try_from(format!("Bearer {}", key.expose_secret())).map_err(|_| ClientError::Key);
    value.map(|mut value| {
        value.set_sensitive(true);
        value
    })
}

impl Client {
    /// Sends a request and reads the answer's JSON.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, content).await?;
        let body = self.whole(response, LONGEST).await?;
        serde_json::from_slice(&body).map_err(|error| self.odd(format!("{path}: {error}")))
    }

    /// Sends a request and gives the answer, if it is not an error.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.endpoint().authority())
            .header(header::USER_AGENT, concat!("bailiwick/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "*/*");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, authorization(key)?);
        }
        if let Some(kind) = content.kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(content.body).map_err(|error| self.odd(error.to_string()))?;
        let response = match timeout(CONNECTING, self.connect()).await {
            Ok(connected) => connected?.send_request(request).await,
            Err(_) => return Err(self.no_connection(io::ErrorKind::TimedOut.into())),
        };
        let response = response.map_err(|source| self.broken(source))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    /// Connects, and leaves the connection to a task that ends with it.
    async fn connect(&self) -> Result<http1::SendRequest<Body>, ClientError> {
        let (host, port) = (self.endpoint().host(), self.endpoint().port());
        let stream = TcpStream::connect((host, port)).await.map_err(|error| self.no_connection(error))?;
        match &self.tls {
            None => self.handshake(stream).await,
            Some(connector) => {
                let stream = connector.connect(host, stream).await;
                self.handshake(stream.map_err(|error| self.no_connection(error))?).await
            }
        }
    }

    async fn handshake(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<http1::SendRequest<Body>, ClientError> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|source| self.broken(source))?;
        // Its failure is that of the request, too.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn whole(&self, response: Response<Incoming>, limit: usize) -> Result<Bytes, ClientError> {
        match Limited::new(response.into_body(), limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(source) => Err(self.broken(*source)),
                Err(error) => Err(self.odd(error.to_string())),
            },
        }
    }

    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let body = self.whole(response, LONGEST_ERROR).await.unwrap_or_default();
        let ErrorBody { message, code } = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
            message: status.canonical_reason().unwrap_or("the server refused").to_owned(),
            code: None,
        });
        ClientError::Status { status: status.as_u16(), code, message }
    }

    fn no_connection(&self, source: io::Error) -> ClientError {
        ClientError::Connect { server: self.endpoint().to_string(), source }
    }

    pub(crate) fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Transport { server: self.endpoint().to_string(), source }
    }

    pub(crate) fn odd(&self, problem: String) -> ClientError {
        ClientError::Answer { server: self.endpoint().to_string(), problem }
    }
}
