//! One GET to the server.
//!
//! Owns the address, the connection and what a refusal means to somebody at a terminal. hyper without a pool: one command
//! asks once.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::QueryError;

/// Longer than a server lets a query run.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(super) struct Client {
    url: String,
    authority: String,
    /// What stands before `/api`, behind a proxy.
    prefix: String,
    tenant: Option<String>,
}

/// A good answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Bytes,
    pub(super) headers: HeaderMap,
}

impl Client {
    pub(super) fn new(url: &str, tenant: Option<String>) -> Result<Self, QueryError> {
        let bad = |reason: &str| QueryError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: http::Uri = url.parse().map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
        if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
            return Err(bad("only http:// is supported"));
        }
        let authority = uri.authority().ok_or_else(|| bad("no host"))?;
        if uri.query().is_some() {
            return Err(bad("give no query"));
        }
        // Where only a host is given, its port for queries is meant.
        let port = authority.port_u16().unwrap_or(if uri.path().len() > 1 { 80 } else { 3200 });
        Ok(Self {
            url: url.to_owned(),
            authority: format!("{}:{port}", authority.host()),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            tenant,
        })
    }

    pub(super) fn answer_error(&self, reason: String) -> QueryError {
        QueryError::Answer { url: self.url.clone(), reason }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Answer, QueryError> {
        let broken = |reason: String| QueryError::Connect { authority: self.authority.clone(), reason };
        let exchange = self.exchange(path);
        let (status, answer) = match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(done) => done.map_err(|error| broken(error.to_string()))?,
            Err(_) => return Err(broken(format!("nothing came in {} seconds", TIMEOUT.as_secs()))),
        };
        if status.is_success() { Ok(answer) } else { Err(refused(status, &answer.body)) }
    }

    async fn exchange(&self, path: &str) -> Result<(StatusCode, Answer), Box<dyn std::error::Error + Send + Sync>> {
        let tcp = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
        // Ends with the sender; what goes wrong shows there.
        tokio::spawn(connection);
        let mut request =
            Request::get(format!("{}{path}", self.prefix)).header(HOST, &self.authority).header(ACCEPT, "application/json");
        if let Some(tenant) = &self.tenant {
            request = request.header("x-scope-orgid", tenant);
        }
        let response = sender.send_request(request.body(Full::<Bytes>::default())?).await?;
        let (parts, body) = response.into_parts();
        Ok((parts.status, Answer { body: body.collect().await?.to_bytes(), headers: parts.headers }))
    }
}

fn refused(status: StatusCode, body: &[u8]) -> QueryError {
    let text = super::text::clean(String::from_utf8_lossy(body).trim());
    let next = match status.as_u16() {
        400 | 422 => "`spanhouse query --help` has examples",
        401 | 403 => "--tenant says whose data is meant",
        404 => "--url must name the port for queries, 3200 unless configured otherwise",
        413 => "ask for less: a shorter --since, more conditions",
        429 | 502..=504 => "try again in a moment, with a shorter --since if that does not help",
        _ => "the server's log says more",
    };
    let text = if text.is_empty() { "refused without a word".to_owned() } else { text };
    QueryError::Refused { status: status.as_u16(), text, next }
}

/// `a=b&c=d`.
pub(crate) fn query_string(params: &[(&str, String)]) -> String {
    params.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect::<Vec<_>>().join("&")
}

/// Escapes all that might mean something in a path or query.
pub(super) fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_have_a_port_and_may_have_a_prefix() {
        let of = |url: &str| Client::new(url, None).map(|client| (client.authority, client.prefix)).ok();
        assert_eq!(of("http://localhost"), Some(("localhost:3200".into(), String::new())));
        assert_eq!(of("http://[::1]:9/"), Some(("[::1]:9".into(), String::new())));
        assert_eq!(of("http://proxy/tempo/"), Some(("proxy:80".into(), "/tempo".into())));
        for bad in ["https://x", "", "/x", "http://x/?a=b"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    /// Answers one request with `response` and returns what was asked.
    async fn ask(response: &'static str) -> (Result<Answer, QueryError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/t", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let (mut asked, mut buffer) = (Vec::new(), [0; 1024]);
            while !asked.ends_with(b"\r\n\r\n") {
                let count = peer.read(&mut buffer).await.unwrap();
                asked.extend_from_slice(&buffer[..count]);
            }
            peer.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        let answer = Client::new(&url, Some("a".into())).unwrap().get("/api/search?q=x").await;
        (answer, server.await.unwrap())
    }

    #[tokio::test]
    async fn asks_and_tells_what_the_server_says() {
        let (answer, asked) = ask("HTTP/1.1 200 OK\r\nx-spanhouse-partial: torn\r\ncontent-length: 2\r\n\r\n{}").await;
        let answer = answer.unwrap();
        assert_eq!(
            (&answer.body[..], &answer.headers["x-spanhouse-partial"]),
            (&b"{}"[..], &http::HeaderValue::from_static("torn"))
        );
        assert!(
            asked.starts_with("GET /t/api/search?q=x HTTP/1.1\r\n") && asked.contains("x-scope-orgid: a\r\n"),
            "{asked}"
        );

        let (answer, _) = ask("HTTP/1.1 400 Bad Request\r\ncontent-length: 22\r\n\r\ninvalid TraceQL query\n").await;
        let error = answer.unwrap_err().to_string();
        assert_eq!(error, "invalid TraceQL query (HTTP 400); `spanhouse query --help` has examples");
        let gone = Client::new("http://127.0.0.1:1", None).unwrap().get("/").await.unwrap_err().to_string();
        assert!(gone.contains("no answer from 127.0.0.1:1") && gone.contains("--url"), "{gone}");
    }
}
