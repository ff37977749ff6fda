//! Containers through the native door, each test with a state directory of its own.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use pintle_client::{CreateOptions, LogOptions, Monitor, SpawnConfig, State};

use crate::wait::within;
use crate::{Bundle, DEADLINE, Leftovers, TempDir, runc, shim, unique_id};

/// A place for containers. Dropped at the end of a good test, it proves that nothing is left, as
/// [`finish`](Native::finish) does; it kills what is.
#[derive(Debug)]
pub struct Native {
    dir: TempDir,
    ids: Mutex<Vec<String>>,
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its shim.
    pub monitor: Monitor,
    /// Its log.
    pub log: PathBuf,
    /// Its directory: bundle and log lie in it.
    pub dir: PathBuf,
}

impl Native {
    /// An empty place.
    pub fn new(tag: &str) -> Self {
        Self { dir: TempDir::new(tag), ids: Mutex::default() }
    }

    /// The temporary directory of the test.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Directory of the state directories.
    pub fn root(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// How a shim of this place is started.
    pub fn spawn_config(&self, id: &str) -> SpawnConfig {
        let mut config = SpawnConfig::new(id);
        config.root = self.root();
        config.shim = shim();
        config.timeout = Duration::from_secs(60);
        config
    }

    /// A shim without a container yet.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn shim(&self, id: &str) -> Monitor {
        self.ids.lock().expect("ids").push(id.to_string());
        Monitor::spawn(self.spawn_config(id)).await.unwrap_or_else(|e| panic!("start a shim for {id}: {e}"))
    }

    /// What a container of this bundle is made from: runc and a log.
    pub fn options(&self, id: &str, bundle: &Bundle) -> CreateOptions {
        let dir = self.dir.join(id);
        let mut options = CreateOptions::new(bundle.write(&dir));
        options.runtime.path = runc();
        options.logs.push(LogOptions::file(dir.join("log")));
        options
    }

    /// A created container.
    pub async fn create(&self, bundle: &Bundle) -> Container {
        self.create_with(bundle, |_| ()).await
    }

    /// A created container, with other options.
    ///
    /// # Panics
    /// When it is not to be had.
    pub async fn create_with(&self, bundle: &Bundle, change: impl FnOnce(&mut CreateOptions)) -> Container {
        let id = unique_id("n");
        let mut options = self.options(&id, bundle);
        change(&mut options);
        let monitor = self.shim(&id).await;
        monitor.create(&options).await.unwrap_or_else(|e| panic!("create {id}: {e:?}"));
        let dir = self.dir.join(&id);
        Container { log: dir.join("log"), id, monitor, dir }
    }

    /// A started container.
    pub async fn start(&self, bundle: &Bundle) -> Container {
        self.start_with(bundle, |_| ()).await
    }

    /// A started container, with other options.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_with(&self, bundle: &Bundle, change: impl FnOnce(&mut CreateOptions)) -> Container {
        let c = self.create_with(bundle, change).await;
        c.monitor.start().await.unwrap_or_else(|e| panic!("start {}: {e:?}", c.id));
        c
    }

    /// Proves that nothing is left: no state directory, process, mount, cgroup. Done at the end of each test by
    /// itself; here for a test that goes on.
    ///
    /// # Panics
    /// When something is.
    pub fn finish(&self) {
        let left = self.left();
        assert!(left.is_empty(), "the test leaves\n{}", left.join("\n"));
    }

    /// What carries the name of the place or of a container.
    fn marked(&self) -> Leftovers {
        let ids = self.ids.lock().map(|ids| ids.clone()).unwrap_or_default();
        ids.iter().fold(Leftovers::of(self.dir.path().to_string_lossy()), Leftovers::and)
    }

    /// What does not go by itself.
    fn left(&self) -> Vec<String> {
        let mut found = Vec::new();
        within(DEADLINE, || {
            found = self.marked().find();
            let states = std::fs::read_dir(self.root()).into_iter().flatten().flatten();
            found.extend(states.map(|e| format!("state: {}", e.path().display())));
            found.is_empty()
        });
        found
    }

    /// Ends what a failed test left.
    fn kill(&self) {
        for id in self.ids.lock().map(|ids| ids.clone()).unwrap_or_default() {
            let _ = std::process::Command::new(runc()).args(["delete", "--force", &id]).output();
        }
        self.marked().kill();
    }
}

impl Container {
    /// Deletes it, alive or not, after a look at what its shim holds.
    ///
    /// # Panics
    /// When the shim refuses, or holds more than it may.
    pub async fn delete(&self) {
        crate::within_bounds_async(&self.id).await;
        self.monitor.delete(true).await.unwrap_or_else(|e| panic!("delete {}: {e:?}", self.id));
    }

    /// Its state.
    ///
    /// # Panics
    /// When the shim does not answer.
    pub async fn state(&self) -> State {
        self.monitor.state().await.unwrap_or_else(|e| panic!("state of {}: {e:?}", self.id))
    }

    /// The pid of its shim.
    ///
    /// # Panics
    /// When the shim does not answer.
    pub async fn shim_pid(&self) -> u32 {
        self.monitor.info().await.unwrap_or_else(|e| panic!("info of {}: {e:?}", self.id)).pid as u32
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            // Killed before it is told, or a failure would leave a container.
            self.kill();
            panic!("the test leaves\n{}", left.join("\n"));
        }
        for id in self.ids.lock().map(|ids| ids.clone()).unwrap_or_default() {
            let log = self.root().join(&id).join("shim.log");
            if let Ok(text) = std::fs::read_to_string(&log) {
                eprintln!("-- {}:\n{text}", log.display());
            }
        }
        self.kill();
    }
}
