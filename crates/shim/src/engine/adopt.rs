//! Taking over a container whose shim was lost (docs/adr/0011-crash-adoption.md).
//!
//! What can be had again: signals, state, stats, OOM, new execs, the log from where the pipe was read last. What
//! cannot: stdin and terminals, which ended with the old shim, and the ends of execs it had started. How the container
//! ends is taken from the kernel; where that cannot tell, the record says so.

use super::cgroup::Cgroups;
use super::container::Container;
use super::events::EventKind;
use super::failure::Failure;
use super::hub::{Hub, HubConfig};
use super::oom::OomWatch;
use super::persist::{self, StateFile};
use super::reap::{Ended, ExitWatch, Reaper};
use super::record::{read_ending, read_exit_record, write_exit_record};
use super::runtime::{RunIo, RuntimeCli};
use super::spec::CreateSpec;
use super::{logs, rundown, tree};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use pintle_core::cgroup::OomCounter;
use pintle_core::exit::{Exit, UnknownReason, WaitStatus};
use pintle_core::life::{Life, Status, Step};
use pintle_core::line::Stream;
use pintle_core::runtime::RuntimeOp;
use pintle_core::wall::WallTime;
use pintle_sys::pidfd::PidFd;
use pintle_sys::{clock, process};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn time(nanos: i64) -> Option<WallTime> {
    (nanos != 0).then(|| WallTime::from_unix_nanos(nanos))
}

/// Takes over the container of a state directory.
///
/// # Errors
/// If the directory holds no state this version understands.
pub async fn adopt(id: &str, dir: &Path, reaper: Reaper) -> Result<Arc<Container>, Failure> {
    let state = persist::load(dir).map_err(|e| Failure::file("read state of", dir, &e))?;
    // Numbers after a gap: what the lost shim told after its last save is not told twice under the same number.
    let container = Container::new(id, dir, "native", reaper.clone(), state.last_event.saturating_add(1000));
    let Some(spec) = state.spec.clone() else { return Ok(container) };
    let runtime = RuntimeCli::new(spec.runtime_config(dir), reaper.clone(), id);
    if state.pid == 0 {
        // It was lost while it created; what came of that is nobody's, once the runtime has stopped working on it.
        settle_runtime_calls(dir, true).await;
        sweep(dir);
        let _ = runtime.run(&RuntimeOp::Delete { force: true }, RunIo::default()).await;
        sweep_cgroups(&spec, id).await;
        container.save();
        return Ok(container);
    }
    {
        let mut inner = container.lock();
        inner.facts = spec.facts();
        inner.facts.terminal = state.terminal;
        inner.spec = Some(spec.clone());
        inner.runtime = Some(runtime.clone());
        inner.pid = state.pid;
        inner.pid_start = state.pid_start;
        inner.created_at = time(state.created_at);
        inner.started_at = time(state.started_at);
        inner.pipes = (state.stdout_inode, state.stderr_inode);
        inner.life = Life::resume(Status::Running, inner.started_at.is_some(), false);
    }
    // A start under way changes what is asked below.
    settle_runtime_calls(dir, false).await;
    sweep(dir);
    let mut known = read_exit_record(dir).ok().flatten();
    if let (None, Some(mut record)) = (&known, read_ending(dir)) {
        // It was lost during the rundown. The end is known; what was left in the pipes went with the shim.
        record.output_leaked = true;
        write_exit_record(dir, &record).map_err(|e| Failure::file("write exit record in", dir, &e))?;
        known = Some(record);
    }
    if let Some(record) = known {
        container.lock().life.take(Step::Ended);
        container.ended.send_replace(Some(record));
        container.save();
        return Ok(container);
    }
    let hub = Hub::new(HubConfig::default());
    if let Err(failure) = logs::add_sinks(&hub, id, &spec.logs) {
        // The container is worth more than its log.
        eprintln!("{failure}");
    }
    container.observe(&hub);
    container.lock().hub = Some(hub.clone());
    if state.boot_id != clock::boot_id() {
        end(&container, Exit::Unknown(UnknownReason::Rebooted)).await;
        return Ok(container);
    }
    let Some(pidfd) = hold(&state) else {
        end(&container, lost_end(&state)).await;
        return Ok(container);
    };
    let cgroups = Cgroups::of(state.pid);
    let exit = match pidfd.try_clone() {
        Ok(copy) => reaper.watch_adopted(copy),
        Err(e) => return Err(Failure::system("hold container", id, &e)),
    };
    reopen(&hub, &cgroups, &state);
    // The cgroup was made for this container, so everything it has counted is its own.
    let oom = OomWatch::resume(&cgroups, OomCounter::default()).map(Arc::new);
    let status = status_of(&runtime).await.unwrap_or(Status::Running);
    {
        let mut inner = container.lock();
        inner.life = Life::resume(status, status != Status::Created, false);
        inner.pidfd = Some(Arc::new(pidfd));
        inner.cgroups = cgroups;
        inner.oom = oom;
    }
    // What the lost shim has used nobody knows; it did not run an exec each second since boot.
    super::exec::names_from(pintle_sys::clock::mono().0 / 1_000_000_000);
    container.events.push(EventKind::Adopted, "", state.pid, None, &[]);
    container.save();
    container.supervise(exit);
    Ok(container)
}

/// Waits for runtime calls of a lost shim to end, two seconds at most, or ends them. They are known by the files of the
/// state directory that they name.
async fn settle_runtime_calls(dir: &Path, kill: bool) {
    let mark = dir.join(".");
    let mark = mark.as_os_str().as_bytes();
    let named = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        memchr::memmem::find(&line, mark).is_some()
    };
    for _ in 0..100 {
        if tree::matching(kill, named).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Removes the cgroups that a runtime had made, and not yet noted, when it was cut off: its delete does not know them.
async fn sweep_cgroups(spec: &CreateSpec, id: &str) {
    let mut cgroups: Vec<Cgroups> = spec.cgroups_paths(id).iter().map(|path| Cgroups::named(path)).collect();
    // What the runtime had started ends by itself, two seconds at most.
    for _ in 0..100 {
        cgroups.retain(|one| !one.remove_empty());
        if cgroups.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Removes the small files of calls that a lost shim did not see the end of.
fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if name.starts_with("pintle-term.") {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        } else if name.starts_with('.') {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Holds init, if it is still the process that the state names.
fn hold(state: &StateFile) -> Option<PidFd> {
    let pidfd = PidFd::open(state.pid).ok()?;
    let stat = process::stat(state.pid)?;
    (stat.start == state.pid_start && stat.state != b'Z').then_some(pidfd)
}

/// What the kernel can still tell of a process that has ended: something only while its zombie is there.
fn lost_end(state: &StateFile) -> Exit {
    let zombie = process::stat(state.pid).filter(|s| s.start == state.pid_start && s.state == b'Z');
    match zombie.and_then(|s| WaitStatus::from_raw(s.exit_code)) {
        Some(status) => status.into(),
        None => Exit::Unknown(UnknownReason::MonitorLost),
    }
}

/// Tells an end that was not seen.
async fn end(container: &Arc<Container>, exit: Exit) {
    let ended = Ended { exit, at: clock::wall(), mono: clock::mono() };
    let watch = ExitWatch::ended(container.lock().pid, ended);
    rundown::run(container, watch.wait().await).await;
}

/// The status in the runtime's eyes; asked once, since the lost shim may not have saved its last change.
async fn status_of(runtime: &RuntimeCli) -> Option<Status> {
    let output = runtime.run(&RuntimeOp::State, RunIo::default()).await.ok()?;
    let doc: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    match doc.get("status")?.as_str()? {
        "created" => Some(Status::Created),
        "paused" => Some(Status::Paused),
        _ => Some(Status::Running),
    }
}

/// Finds the container's pipes again: any of its processes that still has one open leads to it.
fn reopen(hub: &Arc<Hub>, cgroups: &Cgroups, state: &StateFile) {
    let mut pids = vec![state.pid];
    pids.extend(cgroups.pids());
    for (inode, stream) in [(state.stdout_inode, Stream::Stdout), (state.stderr_inode, Stream::Stderr)] {
        if inode == 0 {
            continue;
        }
        if let Some(fd) = pids.iter().find_map(|pid| find_pipe(*pid, inode)) {
            if let Err(error) = hub.add_output(stream, fd) {
                eprintln!("read {stream:?} of {}: {error}", state.id);
            }
        }
    }
}

fn find_pipe(pid: i32, inode: u64) -> Option<OwnedFd> {
    let want = format!("pipe:[{inode}]");
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    for entry in entries.flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|l| l.as_os_str() == want.as_str()) {
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            if let Ok(fd) = open(&entry.path(), flags, Mode::empty()) {
                return Some(fd);
            }
        }
    }
    None
}
