//! The native sockets beside those that the callers of this door know.

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use pintle_core::cgroup::OomVerdict;
use tokio::task::JoinHandle;

use super::diag::Diag;
use super::options::{Mode, Options};
use crate::door::native::embed::Embedded;
use crate::engine::container::Container;
use crate::engine::foreign::{Foreign, Program};
use crate::engine::hub::Hub;
use crate::engine::oom::OomWatch;
use crate::engine::reap::{Ended, Reaper};
use crate::engine::spec::{CreateSpec, LogSpec, RuntimeSpec};

/// Turns the native sockets off.
const SWITCH: &str = "PINTLE_NATIVE";

/// The native view of the container, once it could be made.
#[derive(Default)]
pub(super) struct Native {
    opening: Option<JoinHandle<Option<Embedded>>>,
    /// Set once it is served.
    container: Arc<OnceLock<Arc<Container>>>,
}

impl Native {
    /// Begins to serve; nothing waits for it and its failure is a warning: the container matters more.
    pub(super) fn open(
        options: &Options,
        diag: &Arc<Diag>,
        reaper: &Reaper,
        hub: &Arc<Hub>,
        oom: Option<Arc<OomWatch>>,
        (pid, program): (i32, Program),
    ) -> Self {
        let off = std::env::var_os(SWITCH).is_some_and(|value| value == "0");
        let Some(id) = options.cid.to_str().filter(|_| !off && !options.mode.is_exec()) else {
            return Self::default();
        };
        let foreign = Foreign {
            spec: spec(options),
            terminal: options.terminal,
            pid,
            hub: Arc::clone(hub),
            oom,
            program,
            restored: matches!(options.mode, Mode::Restore(_)),
        };
        let (id, diag, reaper) = (id.to_owned(), Arc::clone(diag), reaper.clone());
        let container = Arc::<OnceLock<_>>::default();
        let shown = Arc::clone(&container);
        let opening = tokio::spawn(async move {
            let opened = match Embedded::open(&id, "conmon", reaper).await {
                Ok(embedded) => match embedded.container.show(foreign) {
                    Ok(()) => Ok(embedded),
                    Err(error) => {
                        embedded.close().await;
                        Err(error.to_string())
                    }
                },
                Err(error) => Err(error),
            };
            match opened {
                Ok(embedded) => {
                    // Set once, here.
                    let _ = shown.set(embedded.container.clone());
                    Some(embedded)
                }
                Err(error) => {
                    diag.warn(&format!("Failed to serve native sockets: {error}"));
                    None
                }
            }
        });
        Self { opening: Some(opening), container }
    }

    /// Tells of OOM kills.
    pub(super) fn oom(&self, kills: u64) {
        if let Some(container) = self.container.get() {
            container.show_oom(kills);
        }
    }

    /// Tells the end and takes the sockets away.
    pub(super) async fn close(&mut self, ended: Option<(Ended, OomVerdict)>, leaked: bool) {
        let Some(opening) = self.opening.take() else { return };
        // Of no use any more if it has not come to an end by now.
        opening.abort();
        let Ok(Some(embedded)) = opening.await else { return };
        if let Some((ended, oom)) = ended {
            embedded.container.show_end(ended, oom, leaked);
        }
        embedded.close().await;
    }
}

/// What the command line says about the container, in the engine's words.
fn spec(options: &Options) -> CreateSpec {
    let text = |item: &OsString| item.to_string_lossy().into_owned();
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut logs = Vec::new();
    if let Some(path) = &options.log.drivers.file {
        logs.push(LogSpec {
            driver: "k8s-file".to_owned(),
            path: absolute(path),
            max_size: options.log.size_max.unwrap_or(0),
            max_files: options.log.max_files,
            global_max_size: options.log.global_size_max.unwrap_or(0),
            ..LogSpec::default()
        });
    }
    if options.log.drivers.journald {
        logs.push(LogSpec {
            driver: "journald".to_owned(),
            name: options.name.as_ref().map(text).unwrap_or_default(),
            ..LogSpec::default()
        });
    }
    CreateSpec {
        bundle: options.bundle.as_deref().map(absolute).unwrap_or_default(),
        runtime: RuntimeSpec {
            path: text(&options.runtime),
            args: options.runtime_args.iter().map(text).collect(),
            systemd_cgroup: options.systemd_cgroup,
            ..RuntimeSpec::default()
        },
        logs,
        stdin: options.stdin || options.terminal,
        stdin_once: options.stdin && !options.leave_stdin_open,
        ..CreateSpec::default()
    }
}
