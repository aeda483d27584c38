//! One connection to the server: requests over HTTP/1.1 or gRPC, packets over UDP, and plain GETs.
//!
//! Owns connecting, framing of requests and what an answer means. Does not own retries or timing.
//! hyper without a pool: a load generator wants to know its connections, and pays for each layer on the server's cores.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpStream, UdpSocket};

use super::wire::{Field, scan};
use super::{Compression, LoadgenError, Protocol};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Host and port of a plain HTTP server.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub authority: String,
}

impl Endpoint {
    pub(super) fn parse(url: &str, default_port: u16) -> Result<Self, LoadgenError> {
        let bad = |reason: &str| LoadgenError::Endpoint { url: url.to_owned(), reason: reason.to_owned() };
        let uri: http::Uri = url.parse().map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
        if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
            return Err(bad("only http:// is supported"));
        }
        let authority = uri.authority().ok_or_else(|| bad("no host"))?;
        if !matches!(uri.path(), "" | "/") {
            return Err(bad("give host and port only, without a path"));
        }
        let port = authority.port_u16().unwrap_or(default_port);
        Ok(Self { authority: format!("{}:{port}", authority.host()) })
    }
}

/// How requests look; the same for all connections of a run.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub protocol: Protocol,
    pub compression: Compression,
    pub tenant: Option<String>,
}

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted {
        refused: u64,
        message: String,
    },
    /// Send it again, after this long if the server said so.
    Retry {
        after: Option<Duration>,
        message: String,
    },
    Rejected {
        message: String,
    },
}

/// What a GET brought.
#[derive(Debug)]
pub(super) struct Got {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

enum Link {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
    Udp(UdpSocket),
}

/// A connection that is opened when needed and again after it broke.
pub(super) struct Client {
    endpoint: Endpoint,
    style: Style,
    link: Option<Link>,
}

impl Client {
    pub(super) fn new(endpoint: Endpoint, style: Style) -> Self {
        Self { endpoint, style, link: None }
    }

    pub(super) async fn connect(&mut self) -> Result<(), LoadgenError> {
        let failed = |reason: String| LoadgenError::Connect { authority: self.endpoint.authority.clone(), reason };
        if self.style.protocol.is_udp() {
            let socket = udp(&self.endpoint.authority).await.map_err(|e| failed(e.to_string()))?;
            self.link = Some(Link::Udp(socket));
            return Ok(());
        }
        let tcp = TcpStream::connect(&self.endpoint.authority).await.map_err(|e| failed(e.to_string()))?;
        tcp.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
        let io = TokioIo::new(tcp);
        // The connection tasks end when their senders are dropped or the peer closes; errors surface at the sender.
        self.link = Some(match self.style.protocol.is_grpc() {
            false => {
                let (sender, connection) = http1::handshake(io).await.map_err(|e| failed(e.to_string()))?;
                tokio::spawn(connection);
                Link::Http1(sender)
            }
            true => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), io).await.map_err(|e| failed(e.to_string()))?;
                tokio::spawn(connection);
                Link::Http2(sender)
            }
        });
        Ok(())
    }

    /// Whether the server ended the connection.
    pub(super) fn is_closed(&self) -> bool {
        self.link.as_ref().is_none_or(|link| match link {
            Link::Http1(sender) => sender.is_closed(),
            Link::Http2(sender) => sender.is_closed(),
            Link::Udp(_) => false,
        })
    }

    /// Sends one export request; `body` is framed and compressed already. An error means the connection broke.
    pub(super) async fn export(&mut self, body: Bytes) -> Result<Answer, LoadgenError> {
        let protocol = self.style.protocol;
        if protocol.is_udp() {
            return self.send_packet(&body).await;
        }
        let authority = &self.endpoint.authority;
        let encoding = self.style.compression.name();
        let (path, kind) = protocol.request();
        let mut request = if protocol.is_grpc() {
            let request = Request::post(format!("http://{authority}{path}"));
            let request = request.header(CONTENT_TYPE, kind).header("te", "trailers");
            if encoding.is_empty() { request } else { request.header("grpc-encoding", encoding) }
        } else {
            let request = Request::post(path).header(HOST, authority).header(CONTENT_TYPE, kind);
            if encoding.is_empty() { request } else { request.header(CONTENT_ENCODING, encoding) }
        };
        if let Some(tenant) = &self.style.tenant {
            request = request.header("x-scope-orgid", tenant);
        }
        let request = request.body(Full::new(body)).map_err(|e| self.broken(&e))?;
        let (status, headers, body, trailers) = self.send(request).await?;
        Ok(match protocol.is_grpc() {
            true => grpc_answer(status, &headers, trailers.as_ref(), &body),
            false => http_answer(protocol, status, &headers, &body),
        })
    }

    /// Sends one packet, which nobody acknowledges.
    async fn send_packet(&mut self, packet: &[u8]) -> Result<Answer, LoadgenError> {
        if self.link.is_none() {
            self.connect().await?;
        }
        let sent = match &self.link {
            Some(Link::Udp(socket)) => socket.send(packet).await,
            _ => return Err(self.broken(&"not connected")),
        };
        match sent {
            Ok(_) => Ok(Answer::Accepted { refused: 0, message: String::new() }),
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// A GET with its answer.
    pub(super) async fn get(&mut self, path: &str, accept: &str) -> Result<Got, LoadgenError> {
        let mut request = Request::get(path).header(HOST, &self.endpoint.authority).header(ACCEPT, accept);
        if let Some(tenant) = &self.style.tenant {
            request = request.header("x-scope-orgid", tenant);
        }
        let request = request.body(Full::default()).map_err(|e| self.broken(&e))?;
        let (status, headers, body, _) = self.send(request).await?;
        Ok(Got { status, headers, body })
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, HeaderMap, Bytes, Option<HeaderMap>), LoadgenError> {
        if self.link.is_none() {
            self.connect().await?;
        }
        let exchange = async {
            let response = match self.link.as_mut() {
                Some(Link::Http1(sender)) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
                Some(Link::Http2(sender)) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
                Some(Link::Udp(_)) | None => return Ok(None),
            };
            let (parts, body) = response.into_parts();
            let collected = body.collect().await?;
            let trailers = collected.trailers().cloned();
            Ok::<_, hyper::Error>(Some((parts.status, parts.headers, collected.to_bytes(), trailers)))
        };
        let result = tokio::time::timeout(REQUEST_TIMEOUT, exchange).await;
        match result {
            Ok(Ok(Some(answer))) => {
                // Some servers want a connection for each request.
                if answer.1.get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close")) {
                    self.link = None;
                }
                Ok(answer)
            }
            Ok(Ok(None)) => Err(self.broken(&"not connected")),
            Ok(Err(e)) => Err(self.broken(&e)),
            Err(_) => Err(self.broken(&"no answer in 60s")),
        }
    }

    fn broken(&mut self, reason: &dyn std::fmt::Display) -> LoadgenError {
        self.link = None;
        LoadgenError::Connect { authority: self.endpoint.authority.clone(), reason: reason.to_string() }
    }
}

/// A socket that sends to one address only.
async fn udp(authority: &str) -> std::io::Result<UdpSocket> {
    let missing = || std::io::Error::other("the name has no address");
    let to = tokio::net::lookup_host(authority).await?.next().ok_or_else(missing)?;
    let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(from).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// What statuses mean to a client over HTTP.
fn http_answer(protocol: Protocol, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    if status.is_success() {
        return accepted(body);
    }
    let mut message = String::new();
    if protocol.is_otlp() {
        let _ = scan(body, &mut |number, field| {
            if let (2, Field::Bytes(text)) = (number, field) {
                message = String::from_utf8_lossy(text).into_owned();
            }
            Some(())
        });
    } else {
        message = String::from_utf8_lossy(body).into_owned();
    }
    let message = format!("HTTP {}: {message}", status.as_u16());
    match status.as_u16() {
        429 | 502 | 503 | 504 => {
            let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
            Answer::Retry { after: seconds.map(Duration::from_secs), message }
        }
        _ => Answer::Rejected { message },
    }
}

fn grpc_answer(status: StatusCode, headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &[u8]) -> Answer {
    // An answer without a body carries its status in the headers.
    let field = |name: &str| {
        let value = trailers.and_then(|trailers| trailers.get(name)).or_else(|| headers.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (code, message) = (field("grpc-status"), field("grpc-message"));
    let message = format!("gRPC status {code}: {message}");
    match code.as_str() {
        "0" => accepted(body.get(5..).unwrap_or_default()),
        // RESOURCE_EXHAUSTED and UNAVAILABLE; deadline, abort and cancel are retryable by OTLP too.
        "8" | "14" | "1" | "4" | "10" | "11" | "15" => Answer::Retry { after: None, message },
        "" => Answer::Rejected { message: format!("HTTP {} without a gRPC status", status.as_u16()) },
        _ => Answer::Rejected { message },
    }
}

/// Reads `partial_success` of an ExportTraceServiceResponse.
fn accepted(body: &[u8]) -> Answer {
    let (mut refused, mut message) = (0, String::new());
    let _ = super::wire::scan_messages(body, 1, &mut |partial| {
        scan(partial, &mut |number, field| {
            match (number, field) {
                (1, Field::Number(count)) => refused = count,
                (2, Field::Bytes(text)) => message = String::from_utf8_lossy(text).into_owned(),
                _ => {}
            }
            Some(())
        })
    });
    Answer::Accepted { refused, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_otlp_says() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "3".parse().unwrap());
        let answer = http_answer(Protocol::OtlpHttp, StatusCode::TOO_MANY_REQUESTS, &headers, &[0x12, 2, b'n', b'o']);
        assert_eq!(answer, Answer::Retry { after: Some(Duration::from_secs(3)), message: "HTTP 429: no".into() });
        assert!(matches!(http_answer(Protocol::OtlpHttp, StatusCode::BAD_REQUEST, &headers, &[]), Answer::Rejected { .. }));
        let partial = [0x0a, 5, 0x08, 7, 0x12, 1, b'x'];
        assert_eq!(
            http_answer(Protocol::OtlpHttp, StatusCode::OK, &headers, &partial),
            Answer::Accepted { refused: 7, message: "x".into() }
        );
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "8".parse().unwrap());
        assert!(matches!(grpc_answer(StatusCode::OK, &headers, Some(&trailers), &[]), Answer::Retry { .. }));
    }

    #[test]
    fn endpoints_are_host_and_port() {
        assert_eq!(Endpoint::parse("http://localhost", 4318).unwrap().authority, "localhost:4318");
        assert_eq!(Endpoint::parse("http://[::1]:9/", 4318).unwrap().authority, "[::1]:9");
        for bad in ["https://x", "http://x/v1/traces", "", "/x"] {
            assert!(Endpoint::parse(bad, 1).is_err(), "{bad}");
        }
    }
}
