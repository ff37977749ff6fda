//! `delete`: cleans up after a server that is gone, or about to go.
//!
//! containerd runs it after every task, also after a clean end, while the server may still be sending its last events.
//! It has five seconds.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pintle_core::runtime::{GlobalArgs, RuntimeOp, argv};
use pintle_proto::containerd::task::DeleteResponse;
use pintle_sys::pidfd::PidFd;
use pintle_sys::process;
use protobuf::Message as _;
use protobuf::well_known_types::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

use super::args::Args;
use super::logger::now;
use super::mounts;
use super::options::Options;
use super::paths::Bundle;
use super::runtime::known_below;

/// How long a server may take to go by itself.
const GRACE: Duration = Duration::from_millis(1500);
/// How long the runtime may take.
const RUNTIME_LIMIT: Duration = Duration::from_millis(2500);

/// Names a server beyond doubt; it writes this when it starts and removes it when it ends by itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ShimFile {
    pub(super) pid: i32,
    /// Start time of that process, against pid reuse.
    pub(super) start: u64,
    /// Socket file of the server.
    pub(super) socket: String,
    /// State directory of the native protocol, if it is served.
    pub(super) native: Option<PathBuf>,
}

/// The end of init, for a `delete` after the server's death.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExitFile {
    pub(super) pid: i32,
    pub(super) status: u32,
    pub(super) secs: i64,
    pub(super) nanos: u32,
}

fn load<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let dir = match &args.bundle {
        Some(dir) => PathBuf::from(dir),
        None => std::env::current_dir().map_err(|e| format!("find the working directory: {e}"))?,
    };
    let bundle = Bundle(dir);
    let shim: Option<ShimFile> = load(&bundle.shim());
    if let Some(shim) = &shim {
        end_server(shim);
    }
    let options: Options = load(&bundle.options()).unwrap_or_default();
    let removed = delete_container(&options, &args.namespace, &args.id);
    mounts::unmount_now(&bundle.rootfs())
        .map_err(|e| format!("unmount {}: {e}", bundle.rootfs().display()))?;
    remove_socket(&bundle, shim.as_ref());
    removed?;
    let exit: Option<ExitFile> = load(&bundle.exit());
    let pid = fs::read_to_string(bundle.init_pid()).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    let time = now();
    let exit = exit.unwrap_or(ExitFile { pid, status: 137, secs: time.secs, nanos: time.nanos });
    let mut out = DeleteResponse::new();
    out.pid = u32::try_from(exit.pid).unwrap_or(0);
    out.exit_status = exit.status;
    let nanos = i32::try_from(exit.nanos).unwrap_or(0);
    out.exited_at = Some(Timestamp { seconds: exit.secs, nanos, ..Default::default() }).into();
    let bytes = out.write_to_bytes().map_err(|e| format!("encode the answer: {e}"))?;
    std::io::stdout().write_all(&bytes).map_err(|e| format!("write to stdout: {e}"))
}

/// Waits for a server to go, and kills it if it does not.
fn end_server(shim: &ShimFile) {
    let alive = || process::stat(shim.pid).is_some_and(|s| s.start == shim.start && s.state != b'Z');
    let end = Instant::now() + GRACE;
    while alive() {
        if Instant::now() >= end {
            // Opened first, checked after: the descriptor cannot come to mean another process.
            if let Ok(held) = PidFd::open(shim.pid) {
                if alive() {
                    let _ = held.signal(libc::SIGKILL);
                }
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The runtime's `delete --force`, which knows nothing of a container that is gone and says so, or succeeds.
fn delete_container(options: &Options, namespace: &str, id: &str) -> Result<(), String> {
    let root = options.state_root(namespace);
    // Nothing below the root: the usual case, after a clean end.
    if !known_below(Path::new(&root), id) {
        return Ok(());
    }
    let global = GlobalArgs {
        root: Some(root.clone().into_bytes()),
        systemd_cgroup: options.systemd_cgroup,
        ..GlobalArgs::default()
    };
    let mut command = Command::new(&options.binary);
    for arg in argv(&global, &RuntimeOp::Delete { force: true }, id.as_bytes()) {
        command.arg(OsString::from_vec(arg));
    }
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|e| format!("start runtime {}: {e}", options.binary))?;
    let end = Instant::now() + RUNTIME_LIMIT;
    loop {
        match child.try_wait().map_err(|e| format!("wait for runtime {}: {e}", options.binary))? {
            Some(status) if status.success() || !known_below(Path::new(&root), id) => return Ok(()),
            Some(status) => return Err(format!("runtime {} delete {id}: {status}", options.binary)),
            None if Instant::now() >= end => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("runtime {} delete {id} took too long", options.binary));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn remove_socket(bundle: &Bundle, shim: Option<&ShimFile>) {
    let named = fs::read_to_string(bundle.address()).ok();
    let path = named.as_deref().and_then(|t| t.trim().strip_prefix("unix://")).map(PathBuf::from);
    for path in path.into_iter().chain(shim.map(|s| PathBuf::from(&s.socket))) {
        // It may be gone, which is what is wanted.
        let _ = fs::remove_file(path);
    }
    if let Some(dir) = shim.and_then(|s| s.native.as_ref()) {
        let _ = fs::remove_dir_all(dir);
    }
}
