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

/// Accepts for ever; `each` gets connections of permitted peers, one after the other.
fn accept_loop<F>(
    listener: OwnedFd,
    each: impl Fn(OwnedFd) -> F + Send + 'static,
) -> io::Result<JoinHandle<()>>
where
    F: Future<Output = ()> + Send,
{
    let listener = async_fd(listener, Interest::READABLE)?;
    Ok(tokio::spawn(async move {
        loop {
            let Ok(mut ready) = listener.readable().await else { return };
            match ready.try_io(|l| seqpacket::accept(l.as_fd())) {
                Err(_would_block) => {}
                // Whoever may not talk to us is closed without a word.
                Ok(Ok(fd)) if peer::credentials(&fd).is_ok_and(peer::allowed) => each(fd).await,
                Ok(Ok(_somebody_else)) => {}
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
    let room = connections.clone();
    let first = accept_loop(monitor, move |fd| {
        // One that there is no room for is closed, and its client may try again.
        if let (Ok(stream), Ok(place)) = (UnixStream::from_std(fd.into()), room.clone().try_acquire_owned()) {
            let _ = sender.try_send(Guarded::new(stream, Limits::NATIVE, Arc::clone(&total), place));
        }
        std::future::ready(())
    })?;
    let second = accept_loop(stdio, move |fd| {
        let waiting = Arc::clone(&waiting);
        async move {
            let Some(place) = waiting.place().await else { return };
            tokio::spawn(async move {
                let _ = waiting.receive(fd).await;
                drop(place);
            });
        }
    })?;
    Ok(Listening {
        monitor: ttrpc::r#async::transport::Listener::new(Incoming(receiver)),
        connections,
        tasks: vec![first, second],
    })
}
