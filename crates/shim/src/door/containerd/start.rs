//! `start`: makes the server and prints where it listens.
//!
//! The daemon reads stdout and stderr together until both are closed, so nothing but the answer is printed, and the
//! server inherits neither.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pintle_proto::containerd::bootstrap::BootstrapParams;
use pintle_sys::atomic::{Durability, write};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;

use super::args::Args;
use super::info::read_stdin;
use super::options::Options;
use super::paths::{Bundle, SOCKET_DIR, socket};

/// What standard input said.
#[derive(Debug, Default)]
struct Input {
    /// There was a `BootstrapParams` for us: the daemon is 2.3 or newer.
    params: Option<BootstrapParams>,
    options: Options,
}

/// A `BootstrapParams` and an `Any` look alike on the wire; only the first names us and our namespace.
fn understand(input: &[u8], id: &str, namespace: &str) -> Result<Input, String> {
    if input.is_empty() {
        return Ok(Input::default());
    }
    if let Ok(params) = BootstrapParams::parse_from_bytes(input) {
        if params.instance_id == id && params.namespace == namespace {
            let mut options = Options::default();
            for any in params.extensions.iter().filter_map(|e| e.value.as_ref()) {
                // Extensions of other kinds are none of our business.
                if let Some(found) = Options::decode(any).map_err(|e| e.text().to_owned())? {
                    options = found;
                }
            }
            return Ok(Input { params: Some(params), options });
        }
    }
    let any = Any::parse_from_bytes(input).map_err(|e| format!("decode options on standard input: {e}"))?;
    let options = Options::decode(&any).map_err(|e| e.text().to_owned())?.unwrap_or_default();
    Ok(Input { params: None, options })
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let cwd = std::env::current_dir().map_err(|e| format!("find the working directory: {e}"))?;
    let bundle = Bundle(cwd);
    let input = understand(&read_stdin()?, &args.id, &args.namespace)?;
    let dir = input
        .params
        .as_ref()
        .and_then(|p| p.socket_dir.clone())
        .filter(|d| !d.is_empty())
        .unwrap_or_else(|| SOCKET_DIR.to_owned());
    let path = socket(&dir, &args.address, &args.namespace, &args.id)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|e| format!("create socket directory {dir}: {e}"))?;
    let uri = format!("unix://{}", path.display());
    let Some(listener) = listen(&path)? else {
        // A server for this id lives already.
        write_address(&bundle, &uri)?;
        return answer(&uri, input.params.is_some());
    };
    let made = write_address(&bundle, &uri).and_then(|()| spawn(args, &input, &path, listener));
    if let Err(message) = made {
        // The message is what matters; the socket may be gone already.
        let _ = fs::remove_file(&path);
        return Err(message);
    }
    answer(&uri, input.params.is_some())
}

/// `Ok(None)`: somebody listens there already.
fn listen(path: &Path) -> Result<Option<UnixListener>, String> {
    let failed = |e: io::Error| format!("listen on {}: {e}", path.display());
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Some(listener))
}

fn write_address(bundle: &Bundle, uri: &str) -> Result<(), String> {
    let path = bundle.address();
    write(&path, uri.as_bytes(), 0o600, Durability::Visible)
        .map_err(|e| format!("write {}: {e}", path.display()))
}

fn spawn(args: &Args, input: &Input, socket: &Path, listener: UnixListener) -> Result<(), String> {
    // Wrappers may leak descriptors; kernels without the call get none of ours, since those are all close-on-exec.
    let _ = pintle_sys::inherit::close_on_exec_from(3);
    let (ready, said) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| format!("make a pipe: {e}"))?;
    let mut ready = fs::File::from(ready);
    let mut command = Command::new(executable());
    command.arg0(name());
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    command.args(["-publish-binary", &args.publish_binary]);
    let debug = args.debug || input.params.as_ref().is_some_and(|p| p.log_level <= -4);
    if debug {
        command.arg("-debug");
    }
    command.arg("-socket").arg(socket);
    if let Some(params) = &input.params {
        // The daemon announces that environment and flags will go away.
        if !params.containerd_ttrpc_address.is_empty() {
            command.env("TTRPC_ADDRESS", &params.containerd_ttrpc_address);
        }
    }
    // Those are between the daemon and its own service manager.
    command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").env_remove("LISTEN_PID");
    command.stdin(OwnedFd::from(listener)).stdout(said).stderr(Stdio::null());
    command.process_group(0);
    let mut child = command.spawn().map_err(|e| format!("start the server: {e}"))?;
    drop(command);
    let settled = settle(&mut child, &mut ready, &input.options);
    if settled.is_err() {
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
    settled
}

/// Places the server, then hears from it that it serves.
fn settle(child: &mut Child, ready: &mut fs::File, options: &Options) -> Result<(), String> {
    if !options.shim_cgroup.is_empty() {
        move_to_cgroup(child.id(), &options.shim_cgroup)?;
    }
    // One above the daemon, so that the kernel takes the container's helper first, and the container before it.
    if let Some(score) = daemon_score() {
        let path = format!("/proc/{}/oom_score_adj", child.id());
        fs::write(&path, (score + 1).min(1000).to_string()).map_err(|e| format!("write {path}: {e}"))?;
    }
    let mut text = String::new();
    ready.read_to_string(&mut text).map_err(|e| format!("hear from the server: {e}"))?;
    match text.as_str() {
        "ok\n" => Ok(()),
        "" => Err("the server ended before it was ready".to_owned()),
        other => Err(other.trim_end().to_owned()),
    }
}

fn daemon_score() -> Option<i32> {
    let parent = nix::unistd::getppid();
    fs::read_to_string(format!("/proc/{parent}/oom_score_adj")).ok()?.trim().parse().ok()
}

fn move_to_cgroup(pid: u32, path: &str) -> Result<(), String> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("read mountinfo: {e}"))?;
    let mounts = pintle_core::cgroup::parse_mountinfo(&table);
    let v1: Vec<_> = mounts.iter().filter(|m| !m.unified).collect();
    let wanted = if v1.is_empty() { mounts.iter().collect() } else { v1 };
    for mount in wanted {
        let procs = Path::new(&mount.mount_point).join(path.trim_start_matches('/')).join("cgroup.procs");
        fs::write(&procs, pid.to_string())
            .map_err(|e| format!("move the shim to {}: {e}", procs.display()))?;
    }
    Ok(())
}

/// Our own executable, by its path where it has one still.
fn executable() -> PathBuf {
    std::env::current_exe().ok().filter(|p| p.exists()).unwrap_or_else(|| "/proc/self/exe".into())
}

/// The name the server goes by, which leads it to this door again.
fn name() -> String {
    let own = std::env::args().next().unwrap_or_default();
    let file = own.rsplit('/').next().unwrap_or_default();
    if file.starts_with("containerd-shim-") { own } else { "containerd-shim-pintle-v2".to_owned() }
}

/// JSON where the daemon is known to understand it, the bare address for everybody else: 1.6 and CRI-O dial whatever
/// they read. Version 2 either way, so that every container has its own shim.
fn answer(uri: &str, bootstrap: bool) -> Result<(), String> {
    let text = if bootstrap {
        serde_json::json!({ "version": 2, "address": uri, "protocol": "ttrpc" }).to_string()
    } else {
        uri.to_owned()
    };
    io::stdout().write_all(text.as_bytes()).map_err(|e| format!("write to stdout: {e}"))
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(input: &[u8]) -> Result<(), String> {
    understand(input, "id", "default").map(drop)
}

#[cfg(test)]
mod tests {
    use pintle_proto::containerd::bootstrap::Extension;
    use pintle_proto::containerd::{pack, runc_options};

    use super::*;

    #[test]
    fn three_kinds_of_input() {
        let options = runc_options::Options { binary_name: "crun".into(), ..Default::default() };
        assert!(understand(b"", "x", "n").unwrap().params.is_none());
        let any = pack(&options).write_to_bytes().unwrap();
        let input = understand(&any, "x", "n").unwrap();
        assert_eq!((input.params.is_none(), input.options.binary.as_str()), (true, "crun"));
        let params = BootstrapParams {
            instance_id: "x".into(),
            namespace: "n".into(),
            log_level: -8,
            extensions: vec![Extension { value: Some(pack(&options)).into(), ..Default::default() }],
            socket_dir: Some("/s".into()),
            ..Default::default()
        };
        let bytes = params.write_to_bytes().unwrap();
        let input = understand(&bytes, "x", "n").unwrap();
        assert_eq!(input.options.binary, "crun");
        assert_eq!(input.params.unwrap().log_level, -8);
        // The same bytes for somebody else are taken for an Any of an unknown type, or refused.
        assert!(understand(&bytes, "y", "n").map_or(true, |i| i.params.is_none()));
        assert!(understand(&[0xff, 0xff], "x", "n").is_err());
    }
}
