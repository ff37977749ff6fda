//! Start, end and deletion of a container's init.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pintle_core::exit::Exit;
use pintle_core::runtime::RuntimeOp;
use pintle_proto::containerd::task_events::{TaskDelete, TaskStart};
use pintle_sys::atomic::{Durability, write};
use pintle_sys::clock;
use pintle_sys::pidfd::PidFd;
use tokio::time::{Instant, timeout};

use super::container::{Container, DRAIN, Freeze, QUIET, Restore, SETTLE, lock, path_bytes, phase_word};
use super::delete::ExitFile;
use super::error::{Result, TaskError};
use super::logger::now;
use super::mounts;
use super::process::{Phase, ProcessExit};
use super::publisher::timestamp;
use super::runtime;
use crate::engine::reap::ExitWatch;
use crate::engine::runtime::RunIo;

impl Container {
    /// Start of init.
    pub(super) async fn start(self: &Arc<Self>) -> Result<u32> {
        let _ops = self.ops.lock().await;
        {
            let mut state = self.lock();
            if state.deleted {
                return Err(TaskError::not_found("container not created"));
            }
            let phase = self.init.phase();
            if phase != Phase::Created || state.init_ended {
                let word = if state.init_ended { "stopped" } else { phase_word(phase, state.freeze) };
                return Err(TaskError::precondition(format!("cannot start a {word} process")));
            }
            state.starting = true;
        }
        let since = clock::mono();
        let started = match &self.restore {
            None => self.run_op(&RuntimeOp::Start, RunIo::default()).await.map(drop),
            Some(restore) => self.run_restore(restore).await,
        };
        if started.is_ok() {
            {
                let mut state = self.init.lock();
                state.phase = Phase::Running;
                state.started_at = Some(now());
            }
            let event = TaskStart { container_id: self.id.clone(), pid: self.pid(), ..Default::default() };
            self.shared.publisher.send("/tasks/start", &event);
            if self.restore.is_some() {
                self.supervise_init(since);
            }
        }
        self.lock().starting = false;
        self.shared.touched.send_modify(|n| *n += 1);
        self.init.notify();
        self.notify();
        started.map(|()| self.pid())
    }

    async fn run_restore(self: &Arc<Self>, restore: &Restore) -> Result<()> {
        let stdio =
            self.init.stdio().ok_or_else(|| TaskError::precondition("the container has no streams"))?;
        let io = lock(&self.pending).take();
        let io = io.ok_or_else(|| TaskError::precondition("a restore was tried before"))?;
        let work = if self.options.criu_work_path.is_empty() {
            self.bundle.0.join("work")
        } else {
            PathBuf::from(&self.options.criu_work_path)
        };
        fs::create_dir_all(&work).map_err(|e| TaskError::io(format!("create {}", work.display()), e))?;
        let mut extra: Vec<Vec<u8>> = Vec::new();
        if !restore.parent.is_empty() {
            extra.push(b"--parent-path".to_vec());
            extra.push(restore.parent.clone().into_bytes());
        }
        if self.options.no_pivot {
            extra.push(b"--no-pivot".to_vec());
        }
        // The server is the subreaper already.
        extra.push(b"--no-subreaper".to_vec());
        let op = |console: Option<&Path>| RuntimeOp::Restore {
            bundle: path_bytes(&self.bundle.0),
            pid_file: path_bytes(&self.bundle.init_pid()),
            console_socket: console.map(path_bytes),
            image_path: restore.image.clone().into_bytes(),
            work_path: path_bytes(&work),
            extra: extra.clone(),
        };
        let since = clock::mono();
        let ran = self.run_with_console(&self.init, &stdio, op, io).await?;
        let pid = self.cli.read_pid_file(&ran, &self.bundle.init_pid()).map_err(|e| runtime::failure(&e))?;
        self.found_init(pid, since);
        Ok(())
    }

    /// Waits for the end of init in a task of its own. `since` is a point before init was made.
    pub(super) fn supervise_init(self: &Arc<Self>, since: pintle_core::wall::MonoTime) {
        let watch = self.shared.reaper.watch(self.init.lock().pid, since);
        tokio::spawn(self.clone().end_of_init(watch));
    }

    async fn end_of_init(self: Arc<Self>, watch: ExitWatch) {
        let ended = watch.wait().await;
        // Whoever removes the cgroup takes its counters away.
        let oom = self.lock().oom.clone();
        let early = match &oom {
            Some(watch) => watch.look_at_end(ended.exit.signal() == Some(libc::SIGKILL)).await,
            None => 0,
        };
        // The start is told before the end.
        self.until(|s| !s.starting).await;
        let frozen = {
            let mut state = self.lock();
            state.init_ended = true;
            std::mem::replace(&mut state.freeze, Freeze::Thawed) != Freeze::Thawed
        };
        if let Some(stdio) = self.init.stdio() {
            stdio.process_ended();
        }
        if frozen {
            // Frozen processes do not even die.
            if let Err(e) = self.try_op(&RuntimeOp::Resume).await {
                self.shared.logger.debug(format!("resume after the end of init: {e}"));
            }
        }
        if !self.private_pids {
            self.kill_the_rest().await;
        }
        // Clients of execs hang if the container is gone before their process.
        self.until(|s| s.active == 0).await;
        if let Some(stdio) = self.init.stdio() {
            if stdio.settled(QUIET, SETTLE).await {
                stdio.release_terminal();
            }
        }
        let kills = early + oom.map_or(0, |watch| watch.look());
        if kills > 0 {
            self.tell_oom(kills);
        }
        let exit = ProcessExit::from(ended);
        self.keep_exit(exit);
        {
            let mut state = self.init.lock();
            state.phase = Phase::Stopped;
            state.exit = Some(exit);
            state.pidfd = None;
        }
        let muted = {
            let mut state = self.lock();
            state.reported = true;
            state.muted
        };
        if !muted {
            self.publish_exit(&self.init, exit);
        }
        self.init.notify();
        self.notify();
        self.shared.touched.send_modify(|n| *n += 1);
    }

    /// Processes of a container without a pid namespace of its own do not end with init.
    async fn kill_the_rest(&self) {
        let Err(e) = self.try_op(&RuntimeOp::Kill { signal: libc::SIGKILL, all: true }).await else { return };
        self.shared.logger.debug(format!("kill what init left: {e}"));
        // Some runtimes refuse this for a container whose init is gone.
        for pid in self.cgroups().pids() {
            // Gone meanwhile, which is what is wanted.
            let _ = PidFd::open(pid).and_then(|held| held.signal(libc::SIGKILL));
        }
    }

    /// For `delete`, should this process die before Delete is asked for.
    fn keep_exit(&self, exit: ProcessExit) {
        let file = ExitFile {
            pid: self.init.lock().pid,
            status: exit.status,
            secs: exit.at.secs,
            nanos: exit.at.nanos,
        };
        let bytes = serde_json::to_vec(&file).unwrap_or_default();
        if let Err(e) = write(&self.bundle.exit(), &bytes, 0o600, Durability::Visible) {
            self.shared.logger.debug(format!("write {}: {e}", self.bundle.exit().display()));
        }
    }

    /// Delete of the container.
    pub(super) async fn delete(self: &Arc<Self>) -> Result<(u32, ProcessExit)> {
        let _ops = self.ops.lock().await;
        if self.lock().deleted {
            return Err(TaskError::not_found("container not created"));
        }
        match self.init.phase() {
            Phase::Stopped => self.delete_stopped().await?,
            Phase::Created => self.delete_created().await?,
            _ => return Err(TaskError::precondition("cannot delete a running process")),
        }
        self.let_execs_go().await;
        let rootfs = self.bundle.rootfs();
        mounts::unmount_all(rootfs.clone())
            .await
            .map_err(|e| TaskError::io(format!("unmount {}", rootfs.display()), e))?;
        {
            let mut state = self.lock();
            state.deleted = true;
            state.muted = true;
            state.oom = None;
            state.oom_task = None;
        }
        lock(&self.shared.containers).remove(&self.id);
        self.shared.touched.send_modify(|n| *n += 1);
        let exit = self.init.lock().exit.unwrap_or(ProcessExit {
            status: 137,
            at: now(),
            how: Exit::Signal { signal: libc::SIGKILL, core: false },
        });
        let event = TaskDelete {
            container_id: self.id.clone(),
            pid: self.pid(),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.shared.publisher.send("/tasks/delete", &event);
        Ok((self.pid(), exit))
    }

    /// The container's deletion is not its execs' clients' business: as long as one takes output it gets it, and all of
    /// them together have as long as init's.
    async fn let_execs_go(&self) {
        let end = Instant::now() + DRAIN;
        for stdio in self.execs().into_iter().filter_map(|exec| exec.stdio()) {
            stdio.drained(SETTLE, end.saturating_duration_since(Instant::now())).await;
            stdio.finish_program(SETTLE.min(end.saturating_duration_since(Instant::now()))).await;
            stdio.close();
        }
    }

    async fn delete_stopped(&self) -> Result<()> {
        if let Some(stdio) = self.init.stdio() {
            stdio.drained(DRAIN, DRAIN).await;
            stdio.finish_program(SETTLE).await;
        }
        if runtime::known(&self.cli, &self.id) {
            if let Err(e) = self.try_op(&RuntimeOp::Delete { force: false }).await {
                // A checkpoint that ends the container, or somebody else, may have removed it meanwhile.
                if runtime::known(&self.cli, &self.id) {
                    return Err(runtime::failure(&e));
                }
            }
        }
        if let Some(stdio) = self.init.stdio() {
            stdio.close();
        }
        Ok(())
    }

    async fn delete_created(self: &Arc<Self>) -> Result<()> {
        if runtime::known(&self.cli, &self.id) {
            // runc kills a container that waits without being forced to, crun does not.
            if let Err(e) = self.try_op(&RuntimeOp::Delete { force: true }).await {
                if runtime::known(&self.cli, &self.id) {
                    return Err(runtime::failure(&e));
                }
            }
        }
        if self.init.lock().pid != 0 {
            // Its end comes before the deletion, or not at all.
            let told = timeout(Duration::from_secs(5), self.until(|s| s.reported)).await;
            if told.is_err() {
                self.lock().muted = true;
            }
        }
        if let Some(stdio) = self.init.stdio() {
            stdio.close();
        }
        lock(&self.pending).take();
        Ok(())
    }
}
