//! A client of the API, as small as it can be: for the demonstration and the benchmarks.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A connection to the API, kept alive between calls.
pub struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    key: String,
    host: String,
}

impl Client {
    /// Connects to a daemon in clear.
    pub async fn connect(api: SocketAddr, key: &str) -> Result<Self> {
        let stream = TcpStream::connect(api).await.with_context(|| format!("connecting to {api}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, key: key.to_owned(), host: api.to_string() })
    }

    /// One call; gives the status and the body as JSON (null when it is empty or not JSON).
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.send(method, path, "application/json", bytes).await
    }

    /// A call that must succeed.
    pub async fn expect(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, answer) = self.call(method.clone(), path, body).await?;
        if !status.is_success() {
            bail!("{method} {path}: {status}: {}", answer["message"].as_str().unwrap_or_default());
        }
        Ok(answer)
    }

    /// A call that must succeed and whose answer is read as it comes: the connection has no other use after it.
    pub async fn open(mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Incoming> {
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let response = self.begin(method.clone(), path, "application/json", bytes).await?;
        if !response.status().is_success() {
            bail!("{method} {path}: {}", response.status());
        }
        Ok(response.into_body())
    }

    /// Writes a file inside a sandbox.
    pub async fn write(&mut self, sandbox: &str, path: &str, content: impl Into<Bytes>) -> Result<()> {
        let target = format!("/sandboxes/{sandbox}/files/raw?path={path}");
        let (status, answer) =
            self.send(Method::PUT, &target, "application/octet-stream", content.into()).await?;
        if !status.is_success() {
            bail!("writing {path}: {status}: {answer}");
        }
        Ok(())
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Value)> {
        let response = self.begin(method, path, kind, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    async fn begin(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("x-api-key", &self.key)
            .header("content-type", kind)
            .body(Full::new(body))?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}
