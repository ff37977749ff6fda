//! Containers through the native door, each test with a state directory of its own.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use pintle_client::{CreateOptions, LogOptions, Monitor, SpawnConfig, State};

use crate::{Bundle, Leftovers, TempDir, runc, shim, unique_id};

/// A place for containers. Dropped, it kills what the test left; [`finish`](Native::finish) proves that
/// nothing was left.
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

    /// Proves that nothing is left: no state directory, process, mount, cgroup.
    ///
    /// # Panics
    /// When something is.
    pub fn finish(&self) {
        let mut left = Leftovers::of(self.dir.path().to_string_lossy());
        for id in self.ids.lock().expect("ids").iter() {
            left = left.and(id);
        }
        left.assert_none();
        crate::wait_for("no state directory to be left", || {
            std::fs::read_dir(self.root()).map_or(true, |mut d| d.next().is_none())
        });
    }
}

impl Container {
    /// Deletes it, alive or not.
    ///
    /// # Panics
    /// When the shim refuses.
    pub async fn delete(&self) {
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
        // Whatever a failed test left; after a good one there is nothing.
        let ids = self.ids.lock().map(|ids| ids.clone()).unwrap_or_default();
        if std::fs::read_dir(self.root()).map_or(true, |mut d| d.next().is_none()) {
            return;
        }
        for id in ids {
            if std::thread::panicking() {
                let log = self.root().join(&id).join("shim.log");
                if let Ok(text) = std::fs::read_to_string(&log) {
                    eprintln!("-- {}:\n{text}", log.display());
                }
            }
            let _ = std::process::Command::new(runc()).args(["delete", "--force", &id]).output();
        }
        let root = self.root();
        let root = root.to_string_lossy();
        let Ok(proc) = std::fs::read_dir("/proc") else { return };
        for entry in proc.flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let pid = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
            if let Some(pid) = pid.filter(|p| *p != std::process::id() as i32 && line.contains(&*root)) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }
}
