//! Where queries are answered: HTTP/1.1 and gRPC without TLS on one port, as Grafana dials it, and gRPC on a port of its own.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use spanhouse_proto::tempopb;
use tokio::net::TcpStream;

use crate::harness::server::Setup;

/// Values of `status`: an answer that needs no data. `password` goes along as basic authentication.
async fn values_of_status(port: SocketAddr, password: Option<&str>) -> Vec<String> {
    let io = TokioIo::new(TcpStream::connect(port).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let message = tempopb::SearchTagValuesRequest { tag_name: "status".into(), ..Default::default() }.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message.as_slice());
    let mut request = Request::post(format!("http://{port}/tempopb.StreamingQuerier/SearchTagValuesV2"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(password) = password {
        request = request.header("authorization", format!("Basic {password}"));
    }
    let response = sender.send_request(request.body(Full::new(frame.freeze())).unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    let bytes: Bytes = body.to_bytes();
    let answer = tempopb::SearchTagValuesV2Response::decode(&bytes[5..]).unwrap();
    drop(sender);
    connection.await.unwrap().unwrap();
    assert!(answer.metrics.is_some());
    answer.tag_values.into_iter().map(|value| value.value).collect()
}

#[tokio::test]
async fn http_and_grpc_on_one_port() {
    let server = Setup::new().start().await;
    let port = server.ports.query;
    for path in ["/api/echo", "/api/v2/search/tag/status/values"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for password in [None, Some("YTpi")] {
        assert_eq!(values_of_status(port, password).await, ["error", "ok", "unset"]);
    }
    assert_eq!(values_of_status(server.ports.query_grpc, None).await, ["error", "ok", "unset"]);
}
