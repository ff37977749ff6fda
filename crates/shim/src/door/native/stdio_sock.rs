//! `stdio.sock`: clients connect, say a token, and wait until a call names it.

use crate::engine::failure::{Failure, FailureKind};
use crate::engine::ready::async_fd;
use pintle_core::attach::{KIND_STDERR, KIND_STDOUT, MAX_OUTPUT, ShimPacket};
use pintle_core::line::Stream;
use pintle_sys::seqpacket::{self, Received};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

/// Bytes of a token.
pub(super) const TOKEN_LEN: usize = 16;
/// Connections that wait to be named.
const WAITING_MAX: usize = 256;
/// How long a connection may wait to be named.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a call waits for its connection: the two sockets are not ordered among each other.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Connections by token; the sender tells the waiting task that somebody took it.
type Named = HashMap<Vec<u8>, (OwnedFd, oneshot::Sender<()>)>;

/// The connections that wait.
#[derive(Default)]
pub(super) struct Waiting {
    connections: Mutex<Named>,
    arrived: Notify,
}

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, Named> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one connection until its token is known.
    pub(super) async fn receive(self: Arc<Self>, fd: OwnedFd) -> io::Result<()> {
        let fd = async_fd(fd, Interest::READABLE)?;
        let token = tokio::time::timeout(PATIENCE, async {
            loop {
                let mut ready = fd.readable().await?;
                let mut packet = Vec::new();
                match ready.try_io(|fd| seqpacket::recv_packet(fd.as_fd(), &mut packet, TOKEN_LEN + 1)) {
                    Err(_would_block) => {}
                    Ok(Ok(Received::Packet)) => return Ok(packet),
                    Ok(Ok(_)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    Ok(Err(e)) => return Err(e),
                }
            }
        })
        .await??;
        if token.len() != TOKEN_LEN {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let (taken, until_taken) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if waiting.len() >= WAITING_MAX || waiting.contains_key(&token) {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            waiting.insert(token.clone(), (fd.into_inner(), taken));
        }
        self.arrived.notify_waiters();
        if tokio::time::timeout(PATIENCE, until_taken).await.is_err() {
            self.lock().remove(&token);
        }
        Ok(())
    }

    /// Takes the connection that said `token`.
    ///
    /// # Errors
    /// `InvalidArgument` for a token of a wrong length, `NotFound` if no connection said it.
    pub(super) async fn take(&self, token: &[u8]) -> Result<OwnedFd, Failure> {
        if token.len() != TOKEN_LEN {
            let message = format!("stdio_token has {} bytes instead of {TOKEN_LEN}", token.len());
            return Err(Failure::invalid("stdio_token", message));
        }
        let arrival = async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                arrived.as_mut().enable();
                if let Some((fd, _taken)) = self.lock().remove(token) {
                    return fd;
                }
                arrived.await;
            }
        };
        tokio::time::timeout(ARRIVAL, arrival).await.map_err(|_| {
            let message = "no connection of stdio.sock has said this stdio_token";
            Failure::new(FailureKind::NotFound, "stdio_token", message)
        })
    }
}

/// Sends collected output over a packet socket in the native framing, and its end. Gives up on a client that takes
/// nothing for 30 s.
pub(super) async fn deliver(client: OwnedFd, stdout: Vec<u8>, stderr: Vec<u8>) {
    let Ok(client) = async_fd(client, Interest::WRITABLE) else { return };
    let streams = [(KIND_STDOUT, &stdout), (KIND_STDERR, &stderr)];
    let mut packets: Vec<Vec<u8>> = Vec::new();
    for (kind, bytes) in streams {
        for chunk in bytes.chunks(MAX_OUTPUT) {
            let mut packet = Vec::with_capacity(chunk.len() + 1);
            packet.push(kind);
            packet.extend_from_slice(chunk);
            if !send(&client, &packet).await {
                return;
            }
        }
        let mut end = Vec::new();
        ShimPacket::End(if kind == KIND_STDOUT { Stream::Stdout } else { Stream::Stderr }).encode(&mut end);
        packets.push(end);
    }
    let mut end = Vec::new();
    ShimPacket::Done.encode(&mut end);
    packets.push(end);
    for packet in packets {
        if !send(&client, &packet).await {
            return;
        }
    }
}

async fn send(client: &AsyncFd<OwnedFd>, packet: &[u8]) -> bool {
    let sending = async {
        loop {
            let Ok(mut ready) = client.writable().await else { return false };
            if let Ok(result) = ready.try_io(|fd| seqpacket::send_packet(fd.as_fd(), packet)) {
                return result.is_ok();
            }
        }
    };
    tokio::time::timeout(PATIENCE, sending).await.unwrap_or(false)
}
