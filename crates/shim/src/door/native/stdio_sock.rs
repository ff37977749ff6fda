//! `stdio.sock`: clients connect, say a token, and wait until a call names it.

use crate::engine::failure::{Failure, FailureKind};
use crate::engine::ready::async_fd;
use pintle_core::attach::{KIND_STDERR, KIND_STDOUT, MAX_OUTPUT, ShimPacket};
use pintle_core::line::Stream;
use pintle_sys::seqpacket::{self, Received};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

/// Bytes of a token.
pub(super) const TOKEN_LEN: usize = 16;
/// Connections that have not been named in a call, at a time. More wait in the backlog: hundreds of calls at a time connect
/// all at once, before the first of them is read, and get their turn.
const STDIO_MAX: usize = 256;
/// How long a connection may wait to be named.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one may that others wait behind: a client names its connection at once, whatever waits longer is forgotten.
const GRACE: Duration = Duration::from_secs(5);
/// How long a call waits for its connection: the two sockets are not ordered among each other, and a connection may have
/// to wait until those before it have had their grace.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Connections by token; the sender tells the waiting task that somebody took it.
type Named = HashMap<Vec<u8>, (OwnedFd, oneshot::Sender<()>)>;

/// The connections that wait. Each holds a place.
pub(super) struct Waiting {
    connections: Mutex<Named>,
    arrived: Notify,
    places: Arc<Semaphore>,
    /// A permit for each connection that waits for a place; the oldest of those that hold one for longer than the grace
    /// takes it and goes.
    wanted: Semaphore,
    /// Connections that had to go.
    closed: AtomicU64,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            connections: Mutex::default(),
            arrived: Notify::new(),
            places: Arc::new(Semaphore::new(STDIO_MAX)),
            wanted: Semaphore::new(0),
            closed: AtomicU64::new(0),
        }
    }
}

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, Named> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection, as soon as there is one: at the latest when the oldest has had its grace.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        self.wanted.add_permits(1);
        let place = Arc::clone(&self.places).acquire_owned().await;
        // Not there any more where somebody went for it.
        self.wanted.forget_permits(1);
        place.ok()
    }

    /// Waits until a connection has to go.
    async fn outstayed(&self) {
        tokio::time::sleep(GRACE).await;
        if let Ok(Ok(wanted)) = tokio::time::timeout(PATIENCE - GRACE, self.wanted.acquire()).await {
            wanted.forget();
            self.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Serves one connection until it is named, or has to go.
    pub(super) async fn receive(&self, fd: OwnedFd) -> io::Result<()> {
        let fd = async_fd(fd, Interest::READABLE)?;
        let outstayed = self.outstayed();
        tokio::pin!(outstayed);
        let token = tokio::select! {
            biased;
            token = token(&fd) => token?,
            () = &mut outstayed => return Ok(()),
        };
        let (taken, until_taken) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if waiting.contains_key(&token) {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            waiting.insert(token.clone(), (fd.into_inner(), taken));
        }
        self.arrived.notify_waiters();
        tokio::select! {
            biased;
            _ = until_taken => {}
            () = &mut outstayed => drop(self.lock().remove(&token)),
        }
        Ok(())
    }

    /// Takes the connection that said `token`.
    ///
    /// # Errors
    /// `InvalidArgument` for a token of a wrong length, `NotFound` if no connection said it, `ResourceExhausted` if it may
    /// still wait behind others.
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
        tokio::time::timeout(ARRIVAL, arrival).await.map_err(|_| self.missing())
    }

    /// Why a call does not find its connection.
    fn missing(&self) -> Failure {
        let mut message = "no connection of stdio.sock has said this stdio_token".to_owned();
        let full = self.places.available_permits() == 0;
        if full {
            message += &format!(": all {STDIO_MAX} places are taken by connections that no call has named");
        }
        let closed = self.closed.load(Ordering::Relaxed);
        if closed > 0 {
            let grace = GRACE.as_secs();
            message += &format!("; {closed} that no call had named for {grace} s were closed for others");
        }
        let kind = if full { FailureKind::ResourceExhausted } else { FailureKind::NotFound };
        Failure::new(kind, "stdio_token", message)
    }
}

/// What a connection says first.
async fn token(fd: &AsyncFd<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut packet = Vec::new();
    loop {
        let mut ready = fd.readable().await?;
        match ready.try_io(|fd| seqpacket::recv_packet(fd.as_fd(), &mut packet, TOKEN_LEN + 1)) {
            Err(_would_block) => {}
            Ok(Ok(Received::Packet)) if packet.len() == TOKEN_LEN => return Ok(packet),
            Ok(Ok(Received::Packet)) => return Err(io::ErrorKind::InvalidData.into()),
            Ok(Ok(_)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(e)) => return Err(e),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_behind_a_crowd_is_told_so() {
        let waiting = Waiting::default();
        assert_eq!(waiting.missing().kind, FailureKind::NotFound);
        let mut places = Vec::new();
        for _ in 0..STDIO_MAX {
            places.push(waiting.place().await.unwrap());
        }
        waiting.closed.fetch_add(3, Ordering::Relaxed);
        let failure = waiting.missing();
        assert_eq!(failure.kind, FailureKind::ResourceExhausted);
        assert!(
            failure
                .message
                .contains("all 256 places are taken by connections that no call has named; 3 that")
        );
        // One waits, and one place is asked for; when it comes otherwise, nobody is asked any more.
        let next = waiting.place();
        tokio::pin!(next);
        assert!(poll_once(next.as_mut()).await.is_none());
        assert_eq!(waiting.wanted.available_permits(), 1);
        drop(places.pop());
        places.push(next.await.unwrap());
        assert_eq!((waiting.wanted.available_permits(), waiting.places.available_permits()), (0, 0));
        drop(places);
        assert_eq!(waiting.missing().kind, FailureKind::NotFound);
    }

    /// What it is now, without waiting.
    async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match future.as_mut().poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
