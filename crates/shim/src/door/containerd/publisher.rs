//! Sends events to the daemon: one queue, in order, one event under way.
//!
//! An event that does not go through holds the queue back, so that order survives a restart of the daemon; each is
//! given up after a bounded time, so that a daemon that never comes back does not make the queue grow for ever.
//!
//! An event is sent once over a connection, and its answer is waited for as long as the connection stands: a daemon that
//! is slow or stopped has it already, and would tell it twice. Only a connection that ends without an answer makes it be
//! sent again, since nobody can know then whether it was taken, and an end that is told twice does less harm than one
//! that is never told.

use std::collections::VecDeque;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pintle_core::wall::WallTime;
use pintle_proto::containerd::events::{Envelope, ForwardRequest};
use pintle_proto::containerd::events_ttrpc::EventsClient;
use pintle_proto::containerd::{Named, pack};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::logger::{Logger, now};
use crate::engine::reap::Reaper;

/// Events held at most; the oldest goes first.
const QUEUE_MAX: usize = 2048;
/// Seconds to wait after the first, second, ... failure of an event.
const DELAYS: [u64; 5] = [1, 2, 3, 4, 5];
/// Limit of connecting, and of one call of the daemon's command.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long the answer of a daemon that keeps its connection is waited for.
const ANSWER: Duration = Duration::from_secs(60);

/// Where events go.
#[derive(Debug, Clone)]
enum Route {
    /// Nowhere: CRI-O takes no events.
    None,
    /// The daemon's ttrpc socket, and its executable where that fails for good.
    Ttrpc { socket: String, fallback: Option<Program> },
    /// `containerd publish`, one process per event.
    Program(Program),
}

#[derive(Debug, Clone)]
struct Program {
    path: String,
    address: String,
}

#[derive(Debug, Clone)]
struct Queued {
    topic: &'static str,
    at: WallTime,
    event: Any,
}

/// Why an event did not go through.
enum Unsent {
    /// Another attempt is right.
    Again(String),
    /// The daemon has it and may still take it.
    InDoubt(String),
}

/// The publisher. Cheap to clone.
#[derive(Clone)]
pub(super) struct Publisher(Arc<Inner>);

struct Inner {
    namespace: String,
    route: Route,
    queue: Mutex<VecDeque<Queued>>,
    /// Events accepted and events done with (sent or given up).
    accepted: watch::Sender<u64>,
    done: watch::Sender<u64>,
    logger: Logger,
    reaper: Reaper,
}

/// Adds an event; gives the oldest back where too many wait.
fn push(queue: &mut VecDeque<Queued>, event: Queued) -> Option<Queued> {
    let lost = if queue.len() >= QUEUE_MAX { queue.pop_front() } else { None };
    queue.push_back(event);
    lost
}

impl Publisher {
    /// Starts the publisher's task. `ttrpc` and `address` may be empty.
    pub(super) fn start(
        namespace: &str,
        ttrpc: &str,
        address: &str,
        binary: &str,
        logger: Logger,
        reaper: Reaper,
    ) -> Self {
        // CRI-O names itself, and has no such command.
        let name = binary.rsplit('/').next().unwrap_or_default();
        let program = (!binary.is_empty() && !address.is_empty() && name != "crio")
            .then(|| Program { path: binary.to_owned(), address: address.to_owned() });
        let route = match (ttrpc.strip_prefix("unix://").unwrap_or(ttrpc), program) {
            ("", None) => Route::None,
            ("", Some(program)) => Route::Program(program),
            (socket, fallback) => Route::Ttrpc { socket: socket.to_owned(), fallback },
        };
        let publisher = Self(Arc::new(Inner {
            namespace: namespace.to_owned(),
            route,
            queue: Mutex::default(),
            accepted: watch::channel(0).0,
            done: watch::channel(0).0,
            logger,
            reaper,
        }));
        if !matches!(publisher.0.route, Route::None) {
            tokio::spawn(publisher.clone().run());
        }
        publisher
    }

    /// Queues an event. Never blocks.
    pub(super) fn send<M: Named>(&self, topic: &'static str, event: &M) {
        if matches!(self.0.route, Route::None) {
            return;
        }
        let mut queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lost) = push(&mut queue, Queued { topic, at: now(), event: pack(event) }) {
            self.0.logger.error(format!("event {} dropped: {QUEUE_MAX} events are waiting", lost.topic));
            self.0.done.send_modify(|n| *n += 1);
        }
        drop(queue);
        self.0.accepted.send_modify(|n| *n += 1);
    }

    /// Waits until all events so far are done with.
    pub(super) async fn flush(&self, limit: Duration) {
        let wanted = *self.0.accepted.borrow();
        let mut done = self.0.done.subscribe();
        // What is not sent by then is lost, as it would be with the process.
        let _ = timeout(limit, done.wait_for(|n| *n >= wanted)).await;
    }

    async fn run(self) {
        let mut accepted = self.0.accepted.subscribe();
        let mut client = None;
        loop {
            let next = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(event) = next else {
                if accepted.changed().await.is_err() {
                    return;
                }
                continue;
            };
            self.deliver(&event, &mut client).await;
            self.0.done.send_modify(|n| *n += 1);
        }
    }

    async fn deliver(&self, event: &Queued, client: &mut Option<EventsClient>) {
        let mut last = String::new();
        for pause in std::iter::once(0).chain(DELAYS) {
            if pause > 0 {
                tokio::time::sleep(Duration::from_secs(pause)).await;
            }
            let sent = match &self.0.route {
                Route::None => return,
                Route::Ttrpc { socket, .. } => self.forward(socket, event, client).await,
                Route::Program(program) => self.publish(program, event).await.map_err(Unsent::Again),
            };
            match sent {
                Ok(()) => return,
                Err(Unsent::InDoubt(message)) => {
                    self.0.logger.error(format!("event {} given up: {message}", event.topic));
                    return;
                }
                Err(Unsent::Again(message)) => {
                    self.0.logger.debug(format!("event {}: {message}", event.topic));
                    last = message;
                }
            }
        }
        if let Route::Ttrpc { fallback: Some(program), .. } = &self.0.route {
            if self.publish(program, event).await.is_ok() {
                return;
            }
        }
        self.0.logger.error(format!("event {} dropped: {last}", event.topic));
    }

    /// One attempt over ttrpc; a connection that turns out to be closed is made anew once, and is not used again after
    /// an answer that did not come.
    async fn forward(
        &self,
        socket: &str,
        event: &Queued,
        client: &mut Option<EventsClient>,
    ) -> Result<(), Unsent> {
        let mut fresh = client.is_none();
        loop {
            let connected = match client.take() {
                Some(connected) => connected,
                None => {
                    let stream = timeout(ATTEMPT, UnixStream::connect(socket))
                        .await
                        .map_err(|_| Unsent::Again(format!("connect to {socket}: timed out")))?
                        .map_err(|e| Unsent::Again(format!("connect to {socket}: {e}")))?;
                    EventsClient::new(ttrpc::r#async::Client::new(stream.into()))
                }
            };
            let request =
                ForwardRequest { envelope: Some(self.envelope(event)).into(), ..Default::default() };
            // Without a limit of its own, so that an end of the connection is told from an answer that does not come.
            let call = connected.forward(ttrpc::context::Context::default(), &request);
            let Ok(answer) = timeout(ANSWER, call).await else {
                return Err(Unsent::InDoubt(format!("no answer within {} s", ANSWER.as_secs())));
            };
            match answer {
                Ok(_) => {
                    *client = Some(connected);
                    return Ok(());
                }
                Err(ttrpc::Error::RpcStatus(status)) => {
                    *client = Some(connected);
                    return Err(Unsent::Again(status.message));
                }
                Err(e) if fresh => return Err(Unsent::Again(e.to_string())),
                Err(_) => fresh = true,
            }
        }
    }

    fn envelope(&self, event: &Queued) -> Envelope {
        Envelope {
            timestamp: Some(timestamp(event.at)).into(),
            namespace: self.0.namespace.clone(),
            topic: event.topic.to_owned(),
            event: Some(event.event.clone()).into(),
            ..Default::default()
        }
    }

    /// One attempt by the daemon's own command, which takes the event on its standard input.
    async fn publish(&self, program: &Program, event: &Queued) -> Result<(), String> {
        let bytes = event.event.write_to_bytes().map_err(|e| e.to_string())?;
        // Events are far smaller than a pipe, so one write takes it whole.
        let (input, give) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("make a pipe: {e}"))?;
        std::fs::File::from(give).write_all(&bytes).map_err(|e| format!("write an event: {e}"))?;
        let mut command = Command::new(&program.path);
        command.args(["--address", &program.address, "publish", "--topic", event.topic]);
        command.args(["--namespace", &self.0.namespace]);
        command.stdin(Stdio::from(input)).stdout(Stdio::null()).stderr(Stdio::null());
        let child = self.0.reaper.spawn(&mut command).map_err(|e| format!("start {}: {e}", program.path))?;
        drop(command);
        match timeout(ATTEMPT, child.exit.wait()).await {
            Ok(ended) if ended.success() => Ok(()),
            Ok(ended) => Err(format!("{} publish failed with {}", program.path, ended.exit)),
            Err(_) => {
                // It may have ended just now.
                let _ = child.pidfd.signal(libc::SIGKILL);
                Err(format!("{} publish: timed out", program.path))
            }
        }
    }
}

/// A point in time on the wire.
pub(super) fn timestamp(at: WallTime) -> Timestamp {
    Timestamp { seconds: at.secs, nanos: i32::try_from(at.nanos).unwrap_or(0), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_event_goes_first() {
        let event = |topic| Queued { topic, at: now(), event: Any::default() };
        let mut queue = VecDeque::new();
        assert!(push(&mut queue, event("first")).is_none());
        for _ in 1..QUEUE_MAX {
            assert!(push(&mut queue, event("more")).is_none());
        }
        assert_eq!(push(&mut queue, event("last")).map(|lost| lost.topic), Some("first"));
        assert_eq!((queue.len(), queue.back().map(|e| e.topic)), (QUEUE_MAX, Some("last")));
    }
}
