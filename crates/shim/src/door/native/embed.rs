//! The native protocol for a container of another door: the same sockets and calls, in that door's process.

use super::args::{Args, default_root};
use super::listen;
use super::service::Service;
use super::start::{Setup, prepare};
use super::stdio_sock::Waiting;
use crate::engine::container::Container;
use crate::engine::persist;
use crate::engine::reap::Reaper;
use pintle_proto::monitor::service::create_monitor;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// How long an id may still be held by the monitor of the container's last run.
const PREDECESSOR: Duration = Duration::from_secs(10);

/// A served container.
pub(in crate::door) struct Embedded {
    pub(in crate::door) container: Arc<Container>,
    server: ttrpc::r#async::Server,
    tasks: Vec<JoinHandle<()>>,
    connections: Arc<Semaphore>,
    place: Place,
    _lock: OwnedFd,
    _ending: watch::Receiver<bool>,
}

/// The state directory; it goes with the value, also where serving it came to nothing.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed now is taken away by the container's next run.
        let _ = persist::remove_dir(&self.0);
    }
}

impl Embedded {
    /// Makes the state directory and its sockets and serves them.
    ///
    /// # Errors
    /// A text that names what cannot be made, or that another shim has the id.
    pub(in crate::door) async fn open(id: &str, door: &'static str, reaper: Reaper) -> Result<Self, String> {
        let until = tokio::time::Instant::now() + PREDECESSOR;
        let setup = loop {
            match Self::claim(id, door) {
                Ok(setup) => break setup,
                Err(error) if tokio::time::Instant::now() >= until => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        };
        let Setup { dir, lock, monitor, stdio, attach, .. } = setup;
        let place = Place(dir);
        let container = Container::new(id, &place.0, door, reaper, 0);
        container.set_attach_listener(attach);
        let waiting = Arc::new(Waiting::default());
        let listening =
            listen::listen(monitor, stdio, waiting.clone()).map_err(|error| format!("listen: {error}"))?;
        let (ending, ended) = watch::channel(false);
        let service = Service::new(container.clone(), waiting, ending);
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(listening.monitor)
            .register_service(create_monitor(Arc::new(service)));
        server.start().await.map_err(|error| format!("serve: {error}"))?;
        let (tasks, connections) = (listening.tasks, listening.connections);
        Ok(Self { container, server, tasks, connections, place, _lock: lock, _ending: ended })
    }

    /// The directory of the id. What a killed monitor of the same door has left there is taken away: its container
    /// is its engine's business, and the engine has made a new one.
    fn claim(id: &str, door: &'static str) -> Result<Setup, String> {
        let root = default_root();
        let dir = root.join(id);
        if persist::load(&dir).is_ok_and(|state| state.door == door) && !is_served(&dir) {
            persist::remove_dir(&dir).map_err(|error| format!("remove {}: {error}", dir.display()))?;
        }
        prepare(Args { id: id.to_owned(), root, ..Args::default() })
    }

    /// Ends the service: answers under way are written, then the directory goes.
    pub(in crate::door) async fn close(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        // Gone before the engine hears of the end and may start the next run under the same id.
        drop(self.place);
        if self.connections.available_permits() < listen::CONNECTIONS_MAX {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = tokio::time::timeout(Duration::from_secs(1), self.server.disconnect()).await;
        }
    }
}

/// Whether a living shim holds the directory.
fn is_served(dir: &Path) -> bool {
    use nix::fcntl::{Flock, FlockArg};
    match std::fs::File::open(dir) {
        Ok(held) => Flock::lock(held, FlockArg::LockExclusiveNonblock).is_err(),
        Err(_) => false,
    }
}
