//! What is asked of a container that exists: signals, freezing, limits, checkpoints, and questions.

use std::fs;
use std::path::{Path, PathBuf};

use pintle_core::runtime::RuntimeOp;
use pintle_core::wall::WallTime;
use pintle_proto::containerd::pack;
use pintle_proto::containerd::runc_options::ProcessDetails;
use pintle_proto::containerd::task::{ProcessInfo, StateResponse, Status};
use pintle_proto::containerd::task_events::{TaskCheckpointed, TaskPaused, TaskResumed};
use pintle_sys::atomic::{Durability, write};
use protobuf::well_known_types::any::Any;

use super::container::{Container, Freeze, path_bytes, phase_word};
use super::error::{Result, TaskError};
use super::options::CheckpointOptions;
use super::process::{Phase, Process};
use super::publisher::timestamp;
use super::runtime;
use crate::engine::control::entered;
use crate::engine::runtime::RunIo;

/// What Go calls the zero time. An unset field would read as 1970.
const NEVER: WallTime = WallTime { secs: -62_135_596_800, nanos: 0 };
/// Highest signal of Linux.
const SIGNAL_MAX: u32 = 64;

impl Container {
    /// State, from memory alone: callers wait two seconds at most.
    pub(super) fn state_of(&self, process: &Process) -> StateResponse {
        let freeze = self.lock().freeze;
        let state = process.lock();
        let mut out = StateResponse::new();
        out.id = if process.exec_id.is_empty() { self.id.clone() } else { process.exec_id.clone() };
        out.bundle = self.bundle.0.to_string_lossy().into_owned();
        out.pid = u32::try_from(state.pid).unwrap_or(0);
        out.status = match (state.phase, freeze) {
            (Phase::Created | Phase::Starting, _) => Status::CREATED,
            (Phase::Running, Freeze::Thawed) => Status::RUNNING,
            (Phase::Running, Freeze::Pausing) => Status::PAUSING,
            (Phase::Running, Freeze::Paused) => Status::PAUSED,
            (Phase::Stopped, _) => Status::STOPPED,
        }
        .into();
        out.stdin = process.wanted.stdin.clone();
        out.stdout = process.wanted.stdout.clone();
        out.stderr = process.wanted.stderr.clone();
        out.terminal = process.wanted.terminal;
        out.exit_status = state.exit.map_or(0, |e| e.status);
        out.exited_at = Some(timestamp(state.exit.map_or(NEVER, |e| e.at))).into();
        out
    }

    /// Pids in the container's cgroup, in our namespace. A container that has ended keeps its init's: containerd
    /// takes an empty answer after its restart for a shim that was left behind, and the exit status with it.
    pub(super) fn pids(&self) -> Vec<ProcessInfo> {
        let mut pids = self.cgroups().pids();
        let init = self.init.lock().pid;
        if init > 0 && !pids.contains(&init) && (pids.is_empty() || self.init.phase() != Phase::Stopped) {
            pids.push(init);
        }
        pids.sort_unstable();
        let execs: Vec<(i32, String)> =
            self.execs().iter().map(|e| (e.lock().pid, e.exec_id.clone())).collect();
        let info = |pid: i32| {
            let exec = execs.iter().find(|(p, _)| *p == pid)?;
            Some(pack(&ProcessDetails { exec_id: exec.1.clone(), ..Default::default() }))
        };
        pids.into_iter()
            .map(|pid| ProcessInfo {
                pid: u32::try_from(pid).unwrap_or(0),
                info: info(pid).into(),
                ..Default::default()
            })
            .collect()
    }

    /// Kill.
    pub(super) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let process = self.process(exec_id)?;
        let number = i32::try_from(signal).ok().filter(|_| signal <= SIGNAL_MAX);
        let number = number.ok_or_else(|| TaskError::invalid(format!("signal {signal} does not exist")))?;
        let (phase, pidfd) = {
            let state = process.lock();
            (state.phase, state.pidfd.clone())
        };
        let finished = || TaskError::not_found("process already finished");
        if phase == Phase::Stopped {
            // CRI-O fails a stop on this; the process is as dead as it wants it.
            let dead_enough = matches!(number, libc::SIGKILL | libc::SIGTERM);
            return if self.shared.no_events && dead_enough { Ok(()) } else { Err(finished()) };
        }
        let Some(pidfd) = pidfd else { return Err(TaskError::precondition("process not created")) };
        if number != 0 && phase == Phase::Running {
            entered(pidfd.pid(), number).await;
        }
        if !exec_id.is_empty() || number == 0 {
            return match pidfd.signal(number) {
                Ok(()) => Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Err(finished()),
                Err(e) => Err(TaskError::io(format!("signal process {}", pidfd.pid()), e)),
            };
        }
        let Err(error) = self.try_op(&RuntimeOp::Kill { signal: number, all }).await else {
            if number == libc::SIGKILL {
                self.let_die().await;
            }
            return Ok(());
        };
        // What the runtimes say differs, so the facts decide.
        if pidfd.has_ended() || process.phase() == Phase::Stopped {
            return Err(finished());
        }
        if !runtime::known(&self.cli, &self.id) {
            return Err(TaskError::not_found("no such container"));
        }
        Err(runtime::failure(&error))
    }

    /// On v1 SIGKILL has to wait for a frozen process to be thawed; runc does that itself, crun does not.
    async fn let_die(&self) {
        let paused = self.lock().freeze == Freeze::Paused;
        if !paused || self.cgroups().frozen() != Some(true) {
            return;
        }
        match self.try_op(&RuntimeOp::Resume).await {
            Ok(_) => self.lock().freeze = Freeze::Thawed,
            Err(e) => self.shared.logger.warning(format!("thaw for SIGKILL: {e}")),
        }
    }

    /// Pause.
    pub(super) async fn pause(&self) -> Result<()> {
        let _ops = self.ops.lock().await;
        self.freeze_from("pause", Freeze::Thawed, Freeze::Pausing)?;
        let done = self.run_op(&RuntimeOp::Pause, RunIo::default()).await;
        {
            let mut state = self.lock();
            if state.freeze == Freeze::Pausing {
                state.freeze = if done.is_ok() { Freeze::Paused } else { Freeze::Thawed };
            }
        }
        done?;
        let event = TaskPaused { container_id: self.id.clone(), ..Default::default() };
        self.shared.publisher.send("/tasks/paused", &event);
        Ok(())
    }

    /// Resume.
    pub(super) async fn resume(&self) -> Result<()> {
        let _ops = self.ops.lock().await;
        self.freeze_from("resume", Freeze::Paused, Freeze::Paused)?;
        self.run_op(&RuntimeOp::Resume, RunIo::default()).await?;
        self.lock().freeze = Freeze::Thawed;
        let event = TaskResumed { container_id: self.id.clone(), ..Default::default() };
        self.shared.publisher.send("/tasks/resumed", &event);
        Ok(())
    }

    fn freeze_from(&self, verb: &str, from: Freeze, to: Freeze) -> Result<()> {
        let mut state = self.lock();
        let phase = self.init.phase();
        if phase != Phase::Running || state.init_ended || state.freeze != from {
            let word = if state.init_ended { "stopped" } else { phase_word(phase, state.freeze) };
            return Err(TaskError::precondition(format!("cannot {verb} a {word} container")));
        }
        state.freeze = to;
        Ok(())
    }

    /// Update; `resources` is a JSON document.
    pub(super) async fn update(&self, resources: &[u8]) -> Result<()> {
        let _ops = self.ops.lock().await;
        let phase = self.init.phase();
        if phase == Phase::Stopped || self.lock().deleted {
            return Err(TaskError::precondition("cannot update a stopped container"));
        }
        if let Err(e) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(resources) {
            return Err(TaskError::invalid(format!("resources: {e}")));
        }
        let file = self.cli.scratch_path("resources");
        write(&file, resources, 0o600, Durability::Visible)
            .map_err(|e| TaskError::io(format!("write {}", file.display()), e))?;
        let done = self.run_op(&RuntimeOp::Update { resources: path_bytes(&file) }, RunIo::default()).await;
        // The runtime has read it.
        let _ = fs::remove_file(&file);
        done.map(drop)
    }

    /// Checkpoint.
    pub(super) async fn checkpoint(&self, path: &str, options: &Any) -> Result<()> {
        let options = CheckpointOptions::decode(options)?;
        let _ops = self.ops.lock().await;
        let phase = self.init.phase();
        if phase != Phase::Running || self.lock().init_ended {
            let word = phase_word(phase, Freeze::Thawed);
            return Err(TaskError::precondition(format!("cannot checkpoint a {word} container")));
        }
        let image = if path.is_empty() { &options.image_path } else { path };
        if image.is_empty() {
            return Err(TaskError::invalid("checkpoint needs a path"));
        }
        let own = options.work_path.is_empty();
        let work = if own { self.criu_work() } else { PathBuf::from(&options.work_path) };
        fs::create_dir_all(&work).map_err(|e| TaskError::io(format!("create {}", work.display()), e))?;
        let op = RuntimeOp::Checkpoint {
            image_path: image.as_bytes().to_vec(),
            work_path: path_bytes(&work),
            leave_running: !options.exit,
            extra: options.flags(),
        };
        let done = self.try_op(&op).await;
        let result = done.map(drop).map_err(|error| self.checkpoint_failure(&work, &error));
        if own {
            // Only CRIU's own working files.
            let _ = fs::remove_dir_all(&work);
        }
        result?;
        let event = TaskCheckpointed {
            container_id: self.id.clone(),
            checkpoint: image.to_owned(),
            ..Default::default()
        };
        self.shared.publisher.send("/tasks/checkpointed", &event);
        Ok(())
    }

    fn criu_work(&self) -> PathBuf {
        let work = self.bundle.0.join("work");
        if work.is_dir() { work.join("criu-work") } else { self.bundle.0.join("criu-work") }
    }

    /// CRIU's log tells why; the first line of the failure and where the log lies are what people see.
    fn checkpoint_failure(&self, work: &Path, error: &crate::engine::runtime::RuntimeError) -> TaskError {
        let text = runtime::text(error);
        let first = text.lines().next().unwrap_or_default();
        let kept = self.bundle.0.join("criu-dump.log");
        match fs::copy(work.join("dump.log"), &kept) {
            Ok(_) => TaskError::unknown(format!("{first} path= {}", kept.display())),
            Err(_) => TaskError::unknown(first),
        }
    }

    /// ResizePty.
    pub(super) fn resize(&self, exec_id: &str, rows: u16, columns: u16) -> Result<()> {
        let process = self.process(exec_id)?;
        let mut state = process.lock();
        match (state.phase, &state.stdio) {
            (Phase::Stopped, _) if !exec_id.is_empty() => {
                Err(TaskError::precondition("cannot resize a stopped process"))
            }
            (Phase::Stopped, _) => Ok(()),
            (_, stdio) => {
                let done = stdio.as_ref().map_or(Ok(()), |s| s.resize(rows, columns));
                state.size = Some((rows, columns));
                done.map_err(|e| TaskError::io("set the size of the terminal", e))
            }
        }
    }

    /// CloseIO.
    pub(super) fn close_stdin(&self, exec_id: &str) -> Result<()> {
        let process = self.process(exec_id)?;
        let mut state = process.lock();
        state.stdin_closed = true;
        if let Some(stdio) = &state.stdio {
            stdio.close_stdin();
        }
        Ok(())
    }
}
