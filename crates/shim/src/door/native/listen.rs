//! The sockets: who may connect, how many, and what happens to a connection.

use super::stdio_sock::Waiting;
use crate::door::guard::{Guarded, Limits};
use crate::engine::ready::async_fd;
use pintle_sys::peer;
use pintle_sys::seqpacket;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

/// Connections of `monitor.sock` at a time.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// Connections of `stdio.sock` that have not been named in a call.
const STDIO_MAX: usize = 256;

/// Connections on their way to the ttrpc server.
struct Incoming(mpsc::Receiver<Connection>);

/// A connection of `monitor.sock`; it holds one of the permits.
type Connection = Guarded<UnixStream, OwnedSemaphorePermit>;

impl futures_core::Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|c| c.map(Ok))
    }
}

/// What happens to a connection that there is no room for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Crowd {
    /// It is closed, and its client may try again.
    Close,
    /// It waits in the backlog until there is room.
    Wait,
}

/// Accepts for ever; `each` gets connections of permitted peers, and their place.
fn accept_loop(
    listener: OwnedFd,
    room: Arc<Semaphore>,
    crowd: Crowd,
    each: impl Fn(OwnedFd, OwnedSemaphorePermit) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let listener = async_fd(listener, Interest::READABLE)?;
    Ok(tokio::spawn(async move {
        loop {
            let Ok(mut ready) = listener.readable().await else { return };
            let place = match crowd {
                Crowd::Close => None,
                Crowd::Wait => match room.clone().acquire_owned().await {
                    Ok(place) => Some(place),
                    Err(_closed) => return,
                },
            };
            match ready.try_io(|l| seqpacket::accept(l.as_fd())) {
                Err(_would_block) => {}
                Ok(Ok(fd)) => {
                    // Whoever may not talk to us is closed without a word.
                    if peer::credentials(&fd).is_ok_and(peer::allowed) {
                        if let Some(place) = place.or_else(|| room.clone().try_acquire_owned().ok()) {
                            each(fd, place);
                        }
                    }
                }
                // Out of descriptors or memory: the connection waits in the backlog until something is free.
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }))
}

/// The accept loops.
pub(super) struct Listening {
    pub(super) monitor: ttrpc::r#async::transport::Listener,
    pub(super) connections: Arc<Semaphore>,
    pub(super) tasks: Vec<JoinHandle<()>>,
}

/// Starts to accept on both sockets.
pub(super) fn listen(monitor: OwnedFd, stdio: OwnedFd, waiting: Arc<Waiting>) -> io::Result<Listening> {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (sender, receiver) = mpsc::channel(CONNECTIONS_MAX);
    let total = Arc::default();
    let first = accept_loop(monitor, connections.clone(), Crowd::Close, move |fd, permit| {
        let stream = UnixStream::from_std(fd.into());
        if let Ok(stream) = stream {
            let _ = sender.try_send(Guarded::new(stream, Limits::NATIVE, Arc::clone(&total), permit));
        }
    })?;
    let unnamed = Arc::new(Semaphore::new(STDIO_MAX));
    // Hundreds of calls at a time connect all at once, before the first of them is read: they get their turn.
    let second = accept_loop(stdio, unnamed, Crowd::Wait, move |fd, permit| {
        let waiting = waiting.clone();
        tokio::spawn(async move {
            let _ = waiting.receive(fd).await;
            drop(permit);
        });
    })?;
    Ok(Listening {
        monitor: ttrpc::r#async::transport::Listener::new(Incoming(receiver)),
        connections,
        tasks: vec![first, second],
    })
}
