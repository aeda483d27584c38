//! Jaeger's agent: spans in UDP packets, one message of Thrift in each, never answered.
//!
//! Owns: the sockets' reading, the queue between reading and the pipeline, and what of a packet is a message. Does not own:
//! binding decisions and the order of a stop (the binary's), limits of tenants (the pipeline's).
//!
//! Every port takes both protocols and both methods: the first byte says which protocol it is. The port's own is only a label.
//! A task per port reads the socket and does nothing else, so that the kernel's buffer is emptied while the WAL is busy. What is
//! queued goes on in lots: one record of the WAL for as many packets as came meanwhile. A packet that finds no memory or a full
//! queue is dropped and counted as overloaded; one that is no message is dropped alone and counted as malformed. What the kernel
//! drops because its buffer is full is counted by `drops.rs`.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use spanhouse_common::budget::Lease;
use spanhouse_common::id::TenantId;
use tokio::net::UdpSocket;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::drops::Losses;
use super::thrift;
use crate::otlp::build::Groups;
use crate::pipeline::{Accepted, Ingest, IngestError};
use crate::receive::metrics::{Outcome, Protocol};
use crate::receive::receiver::Receiver;
use crate::receive::status::Refusal;
use crate::thrift::{Binary, COMPACT_PROTOCOL, Compact, Input, Kind};
use crate::zipkin;

/// Longest payload UDP has.
const MAX_PACKET: usize = 65_535;
/// Asked of the kernel, which grants what it is allowed to.
const SOCKET_BUFFER: usize = 4 << 20;
/// Packets between reading and the pipeline.
const QUEUE: usize = 1_000;
/// A lot ends beyond this many bytes of packets.
const LOT_BYTES: usize = 512 << 10;
/// Lots on their way at once: while one waits for the WAL the next is made.
const LOTS: usize = 4;
/// After an error of a socket that says nothing of the next packet.
const PAUSE: Duration = Duration::from_secs(1);

/// Binds a port, with room for bursts if the kernel allows it.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // A small buffer loses packets earlier; it is no reason not to listen.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

struct Packet {
    bytes: Vec<u8>,
    _lease: Lease,
}

/// Takes packets from `socket` until `shutdown`, then brings what is queued to its end. `protocol` labels what is counted.
pub async fn serve<I: Ingest>(receiver: Receiver<I>, socket: UdpSocket, protocol: Protocol, shutdown: CancellationToken) {
    let (queue, packets) = mpsc::channel(QUEUE);
    let packets = Arc::new(Mutex::new(packets));
    let mut lots = JoinSet::new();
    for _ in 0..LOTS {
        lots.spawn(work(receiver.clone(), Arc::clone(&packets), protocol));
    }
    let mut losses = Losses::of(receiver.clone(), protocol, &socket);
    let reader = Reader { receiver, protocol, queue };
    let mut buffer = vec![0; MAX_PACKET];
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = reader.read(&socket, &mut buffer) => {}
        () = losses.watch() => {}
    }
    // What the kernel holds has arrived.
    while let Ok(length) = socket.try_recv(&mut buffer) {
        reader.take(&buffer[..length]);
    }
    losses.count().await;
    drop((socket, reader));
    while let Some(ended) = lots.join_next().await {
        if let Err(error) = ended {
            tracing::error!(error = %error, "a task of an agent port failed");
        }
    }
}

struct Reader<I> {
    receiver: Receiver<I>,
    protocol: Protocol,
    queue: mpsc::Sender<Packet>,
}

impl<I: Ingest> Reader<I> {
    async fn read(&self, socket: &UdpSocket, buffer: &mut [u8]) {
        loop {
            match socket.recv(buffer).await {
                Ok(length) => self.take(&buffer[..length]),
                // Answers of the network to what others sent come as errors too.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => {}
                Err(error) => {
                    tracing::warn!(error = %error, "an agent port cannot read");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Queues a packet, or drops and counts it.
    fn take(&self, packet: &[u8]) {
        let queued = self
            .receiver
            .try_lease(packet.len())
            .is_some_and(|lease| self.queue.try_send(Packet { bytes: packet.to_vec(), _lease: lease }).is_ok());
        if !queued {
            self.receiver.count(self.protocol, Outcome::Overloaded);
        }
    }
}

/// Takes lots from the queue until it ends.
async fn work<I: Ingest>(receiver: Receiver<I>, packets: Arc<Mutex<mpsc::Receiver<Packet>>>, protocol: Protocol) {
    loop {
        let mut lot = Vec::new();
        {
            let mut packets = packets.lock().await;
            let Some(first) = packets.recv().await else { return };
            let mut bytes = first.bytes.len();
            lot.push(first);
            while bytes < LOT_BYTES
                && let Ok(next) = packets.try_recv()
            {
                bytes += next.bytes.len();
                lot.push(next);
            }
        }
        ingest(&receiver, lot, protocol).await;
    }
}

async fn ingest<I: Ingest>(receiver: &Receiver<I>, lot: Vec<Packet>, protocol: Protocol) {
    let bytes = lot.iter().map(|packet| packet.bytes.len()).sum();
    let mut groups = Groups::new(bytes, receiver.settings().max_decoded_bytes);
    let mut taken = 0;
    for Packet { bytes, .. } in &lot {
        let mark = groups.mark();
        match packet(bytes, &mut groups) {
            Ok(()) => taken += 1,
            Err(error) => {
                groups.take_back(&mark);
                tracing::debug!(error = %error, "a packet is no message of an agent's client");
                receiver.count(protocol, Refusal::from(error).outcome);
            }
        }
    }
    if taken == 0 {
        return;
    }
    let body = groups.finish();
    let request = async {
        let _lease = receiver.lease(body.len()).await?;
        Ok::<Accepted, Refusal>(receiver.ingest(receiver.otlp_request(TenantId::single(), body)).await?)
    };
    if let Err(refusal) = receiver.counted_many(protocol, taken, request).await {
        tracing::debug!(packets = taken, error = %refusal.message, "packets were not taken");
    }
}

/// Adds the spans of one message.
fn packet(bytes: &[u8], groups: &mut Groups) -> Result<(), IngestError> {
    if bytes.first() == Some(&COMPACT_PROTOCOL) {
        call(&mut Compact::new(bytes), groups)
    } else {
        call(&mut Binary::new(bytes), groups)
    }
}

fn call<'a, I: Input<'a>>(input: &mut I, groups: &mut Groups) -> Result<(), IngestError> {
    let message = input.message()?;
    // Some write a call where the method has no answer.
    if !matches!(message.kind, 1 | 4) {
        input.fail("a message that is no call")?;
    }
    let mut known = false;
    input.fields(|input, field| {
        match (message.name, field.id, field.kind) {
            (b"emitBatch", 1, Kind::Struct) => thrift::batch(input, groups)?,
            (b"emitZipkinBatch", 1, Kind::List) => zipkin::thrift::spans(input, groups)?,
            _ => return Ok(input.skip(field.kind)?),
        }
        known = true;
        Ok::<_, IngestError>(())
    })?;
    if !known {
        input.fail("no call of emitBatch or emitZipkinBatch")?;
    }
    Ok(())
}

/// The OTLP of one message, for tests.
#[cfg(test)]
pub(super) fn otlp(bytes: &[u8], max: usize) -> Result<Vec<u8>, IngestError> {
    let mut groups = Groups::new(bytes.len(), max);
    packet(bytes, &mut groups)?;
    Ok(groups.finish())
}
