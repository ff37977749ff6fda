//! The connection to one shim: made when it is needed, made again after it broke.

use crate::{
    error::{Error, Result},
    socket::{connect_patiently, nobody_there},
};
use nix::sys::socket::SockType;
use pintle_proto::monitor::service::MonitorClient;
use std::{
    future::Future,
    io,
    os::unix::net::UnixStream as StdUnixStream,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::Mutex,
};

/// What all handles on one shim share.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    connection: Mutex<Option<Connection>>,
}

impl Shared {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, connection: Mutex::new(None) }
    }
    pub(crate) async fn connection(&self) -> Result<Connection> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok(connection.clone());
        }
        *slot = None;
        let dir = &self.dir;
        let context = || format!("connecting to {}", dir.join("monitor.sock").display());
        let fd = connect_patiently(dir, "monitor.sock", SockType::Stream).await.map_err(|error| {
            if nobody_there(&error) {
                Error::NotRunning { dir: dir.clone() }
            } else {
                Error::io(context())(error)
            }
        })?;
        let stream = UnixStream::from_std(StdUnixStream::from(fd)).map_err(Error::io(context()))?;
        let closed = Arc::new(AtomicBool::new(false));
        let socket = ttrpc::r#async::transport::Socket::new(Watched { stream, closed: closed.clone() });
        let client = MonitorClient::new(ttrpc::r#async::Client::new(socket));
        let connection = Connection { client, closed };
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// One call. `limit` of `None` waits for ever. A call that only asks is sent once more if the
    /// connection broke under it.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        name: &'static str,
        asks: bool,
        limit: Option<Duration>,
        send: F,
    ) -> Result<T>
    where
        F: Fn(MonitorClient, ttrpc::context::Context) -> Fut,
        Fut: Future<Output = ttrpc::Result<T>>,
    {
        let dir = &self.dir;
        let once = async || {
            let connection = self.connection().await?;
            // The limit is kept here: one that ttrpc knows would end the shim's side as well.
            let context = ttrpc::context::Context::default();
            let result = send(connection.client.clone(), context).await;
            result.map_err(|error| {
                let error = Error::from_ttrpc(error, dir);
                if matches!(error, Error::Disconnected { .. }) {
                    connection.closed.store(true, Ordering::Release);
                }
                error
            })
        };
        let work = async {
            match once().await {
                Err(Error::Disconnected { .. }) if asks => once().await,
                other => other,
            }
        };
        let Some(limit) = limit else { return work.await };
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { dir: dir.clone(), call: name, limit }),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Connection {
    client: MonitorClient,
    closed: Arc<AtomicBool>,
}

impl Connection {
    /// Whether the peer is gone, as far as has been noticed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// A stream that remembers that its peer is gone, so that no call is sent into the void.
struct Watched {
    stream: UnixStream,
    closed: Arc<AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if result.is_err() || (buf.filled().len() == before && buf.remaining() > 0) {
            self.closed.store(true, Ordering::Release);
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        if result.is_err() {
            self.closed.store(true, Ordering::Release);
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
