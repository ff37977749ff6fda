//! The Runtime API against real runtimes: every operation, concurrency, recovery, checkpoints.

mod attach_exec;
mod checkpoint;
mod concurrency;
mod examples;
mod operations;
mod recovery;
mod stop;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use pintle_client::oci::{
    CgroupManager, Config, Container, ContainerBuilder, Runtime, RuntimeHandler, Spec, Status,
};
use pintle_tests::{Bundle, Leftovers, TempDir, runc, shim, unique_id, wait_for_async, within_bounds_async};

/// An engine's place on disk: bundles, states, logs and shims of one test.
pub struct Place {
    dir: TempDir,
    pub runtime: Runtime,
    ids: Mutex<Vec<String>>,
}

/// The configuration of an engine below `dir`.
pub fn config(dir: &Path, runtime: PathBuf) -> Config {
    let exits = dir.join("exits");
    std::fs::create_dir_all(&exits).expect("create the directory of exit files");
    let handler = RuntimeHandler { runtime_path: runtime, monitor_path: shim(), ..RuntimeHandler::default() };
    Config {
        runtimes: [("runc".to_owned(), handler)].into(),
        cgroup_manager: CgroupManager::Cgroupfs,
        monitor_state_dir: dir.join("run"),
        container_exits_dir: exits,
        ..Config::default()
    }
}

/// The container of this id below `dir`, as an engine knows it from its own records.
pub fn known(dir: &Path, id: &str) -> ContainerBuilder {
    let own = dir.join(id);
    Container::builder(id, id)
        .bundle_path(own.join("bundle"))
        .dir(own.join("state"))
        .log_path(own.join("log"))
}

impl Place {
    pub fn new(tag: &str) -> Self {
        Self::with(tag, runc(), |_| ())
    }

    pub fn with(tag: &str, runtime: PathBuf, change: impl FnOnce(&mut Config)) -> Self {
        Self::at(TempDir::new(tag), runtime, change)
    }

    pub fn at(dir: TempDir, runtime: PathBuf, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path(), runtime);
        change(&mut config);
        Self { dir, runtime: Runtime::new(config), ids: Mutex::default() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A container with its bundle written; the runtime does not know it yet.
    pub fn container(
        &self,
        bundle: &Bundle,
        change: impl FnOnce(ContainerBuilder) -> ContainerBuilder,
    ) -> Container {
        let id = unique_id("r");
        self.ids.lock().expect("ids").push(id.clone());
        prepare(self.path(), &id, bundle);
        let container = change(known(self.path(), &id)).build();
        container.set_spec(Spec::from_json(bundle.config().to_string().as_bytes()).expect("spec"));
        container
    }

    pub async fn created(&self, bundle: &Bundle) -> Container {
        let container = self.container(bundle, |b| b);
        self.runtime.create_container(&container, "", false).await.expect("create");
        container
    }

    pub async fn running(&self, bundle: &Bundle) -> Container {
        let container = self.created(bundle).await;
        self.runtime.start_container(&container).await.expect("start");
        self.runtime.update_container_status(&container).await.expect("status");
        container
    }

    /// Waits for the end of a container.
    pub async fn ended(&self, container: &Container) {
        wait_for_async("the container to end", async || {
            self.runtime.update_container_status(container).await.map_err(|e| e.to_string())?;
            let state = container.state();
            match state.exit_code {
                Some(_) => Ok(()),
                None => Err(format!("{:?}", state.status)),
            }
        })
        .await;
        assert_eq!(container.state().status, Status::Stopped);
        within_bounds_async(container.id()).await;
    }

    pub fn log(&self, container: &Container) -> String {
        std::fs::read_to_string(container.log_path()).unwrap_or_default()
    }

    pub async fn logged(&self, container: &Container, text: &str) {
        wait_for_async("a line in the log", async || {
            let log = self.log(container);
            if log.contains(text) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Proves that nothing is left of the containers of this test.
    pub fn finish(&self) {
        let mut left = Leftovers::of(self.path().to_string_lossy());
        for id in self.ids.lock().expect("ids").iter() {
            left = left.and(id);
        }
        left.assert_none();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            kill_what_is_left(self.path());
        }
    }
}

/// A failed test leaves no container running.
pub fn kill_what_is_left(dir: &Path) {
    let Ok(entries) = pintle_client::scan(&dir.join("run")) else { return };
    for entry in entries.iter().filter(|e| e.alive) {
        let monitor = entry.monitor();
        // A runtime of its own: the test's is being torn down.
        let killed = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let _ = monitor.with_timeout(Duration::from_secs(20)).shutdown(true).await;
            });
        });
        let _ = killed.join();
    }
}

/// Writes what an engine prepares before a create: bundle and directories.
pub fn prepare(dir: &Path, id: &str, bundle: &Bundle) {
    let own = dir.join(id);
    bundle.write(&own);
    std::fs::create_dir_all(own.join("state")).expect("create the state directory");
}
