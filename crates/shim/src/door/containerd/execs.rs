//! The execs of a container.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use pintle_core::runtime::RuntimeOp;
use pintle_proto::containerd::task_events::TaskExecStarted;
use pintle_sys::atomic::{Durability, write};
use pintle_sys::clock;
use protobuf::well_known_types::any::Any;

use super::args::check_name;
use super::container::{Container, DRAIN, Freeze, QUIET, SETTLE, lock, path_bytes, phase_word};
use super::error::{Result, TaskError};
use super::logger::now;
use super::process::{Phase, Process, ProcessExit};
use super::runtime;
use super::stdio::{Stdio, Wanted};
use crate::engine::reap::ExitWatch;
use crate::engine::runtime::kill_leftover;

/// Ended execs kept for a client that never deletes them (CRI-O after a timeout).
const KEPT_EXECS: usize = 256;

impl Container {
    /// Registers an exec.
    pub(super) fn add_exec(&self, exec_id: &str, wanted: Wanted, spec: &Any) -> Result<()> {
        check_name("exec id", exec_id).map_err(TaskError::invalid)?;
        {
            let state = self.lock();
            if state.deleted || state.init_ended || self.init.phase() == Phase::Stopped {
                return Err(TaskError::precondition(format!(
                    "container {} init process is not running",
                    self.id
                )));
            }
            if state.freeze != Freeze::Thawed {
                return Err(TaskError::precondition("cannot exec in a paused container"));
            }
            if self.init.phase() == Phase::Created && self.restore.is_some() {
                return Err(TaskError::precondition("cannot exec in a container that is not restored yet"));
            }
        }
        let mut document: serde_json::Value = serde_json::from_slice(&spec.value)
            .map_err(|e| TaskError::invalid(format!("process of exec {exec_id}: {e}")))?;
        let Some(fields) = document.as_object_mut() else {
            return Err(TaskError::invalid(format!("process of exec {exec_id} is no object")));
        };
        // CRI-O says it here only.
        fields.insert("terminal".to_owned(), wanted.terminal.into());
        let bytes = document.to_string().into_bytes();
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec_id) {
            return Err(TaskError::exists(format!("id {exec_id}")));
        }
        let ended: Vec<_> = execs.values().filter(|p| p.phase() == Phase::Stopped).cloned().collect();
        if ended.len() >= KEPT_EXECS {
            let oldest = ended.iter().min_by_key(|p| p.lock().exit.map(|e| e.at));
            if let Some(gone) = oldest.map(|p| p.exec_id.clone()) {
                if let Some(stdio) = execs.remove(&gone).and_then(|p| p.stdio()) {
                    stdio.close();
                }
            }
        }
        execs.insert(exec_id.to_owned(), Arc::new(Process::new(exec_id, wanted, bytes)));
        Ok(())
    }

    /// Start of an exec.
    pub(super) async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<u32> {
        let process = self.process(exec_id)?;
        let spec = {
            let mut state = self.lock();
            if state.init_ended || state.deleted || self.init.phase() == Phase::Stopped {
                return Err(TaskError::precondition(format!(
                    "container {} init process is not running",
                    self.id
                )));
            }
            if state.freeze != Freeze::Thawed {
                return Err(TaskError::precondition("cannot exec in a paused container"));
            }
            let mut exec = process.lock();
            if exec.phase != Phase::Created {
                let word = phase_word(exec.phase, Freeze::Thawed);
                return Err(TaskError::precondition(format!("cannot start a {word} process")));
            }
            exec.phase = Phase::Starting;
            state.active += 1;
            with_size(&exec.spec, exec.size)
        };
        let since = clock::mono();
        match self.run_exec(&process, &spec).await {
            Ok(pid) => {
                {
                    let mut exec = process.lock();
                    exec.phase = Phase::Running;
                    exec.spec = Vec::new();
                    exec.started_at = Some(now());
                }
                let event = TaskExecStarted {
                    container_id: self.id.clone(),
                    exec_id: exec_id.to_owned(),
                    pid: u32::try_from(pid).unwrap_or(0),
                    ..Default::default()
                };
                self.shared.publisher.send("/tasks/exec-started", &event);
                process.notify();
                if self.lock().init_ended && !self.private_pids {
                    // It came after all others were killed, and would hold back the end of init.
                    let held = process.lock().pidfd.clone();
                    if let Some(Err(e)) = held.map(|held| held.signal(libc::SIGKILL)) {
                        self.shared.logger.debug(format!("kill exec {exec_id} after the end of init: {e}"));
                    }
                }
                let watch = self.shared.reaper.watch(pid, since);
                tokio::spawn(self.clone().end_of_exec(process, watch));
                Ok(u32::try_from(pid).unwrap_or(0))
            }
            Err(error) => {
                let stdio = {
                    let mut exec = process.lock();
                    exec.phase = Phase::Created;
                    exec.failures += 1;
                    exec.pid = 0;
                    exec.pidfd = None;
                    exec.stdio.take()
                };
                if let Some(stdio) = stdio {
                    stdio.close();
                }
                let _ = fs::remove_file(self.bundle.exec_pid(exec_id));
                self.exec_done();
                process.notify();
                Err(error)
            }
        }
    }

    pub(super) fn exec_done(&self) {
        {
            let mut state = self.lock();
            state.active = state.active.saturating_sub(1);
        }
        self.notify();
    }

    async fn run_exec(&self, process: &Arc<Process>, spec: &[u8]) -> Result<i32> {
        let (stdio, io) = Stdio::open(&process.wanted, self.owner(&process.exec_id)).await?;
        {
            let mut exec = process.lock();
            exec.stdio = Some(stdio.clone());
            if exec.stdin_closed {
                stdio.close_stdin();
            }
        }
        let document = self.cli.scratch_path("process");
        write(&document, spec, 0o600, Durability::Visible)
            .map_err(|e| TaskError::io(format!("write {}", document.display()), e))?;
        let pid_file = self.bundle.exec_pid(&process.exec_id);
        let _ = fs::remove_file(&pid_file);
        let op = |console: Option<&Path>| RuntimeOp::Exec {
            process: path_bytes(&document),
            pid_file: path_bytes(&pid_file),
            console_socket: console.map(path_bytes),
            detach: true,
            extra: Vec::new(),
        };
        let since = clock::mono();
        let ran = self.run_with_console(process, &stdio, op, io).await;
        // The runtime has read it.
        let _ = fs::remove_file(&document);
        let op = match ran {
            Ok(op) => op,
            Err(error) => {
                // It may run without the terminal that did not come.
                kill_leftover(&pid_file);
                return Err(error);
            }
        };
        let pid = self.cli.read_pid_file(&op, &pid_file).map_err(|e| runtime::failure(&e))?;
        process.set_pid(pid, &self.shared.reaper, since);
        Ok(pid)
    }

    async fn end_of_exec(self: Arc<Self>, process: Arc<Process>, watch: ExitWatch) {
        let ended = watch.wait().await;
        if let Some(stdio) = process.stdio() {
            stdio.process_ended();
            if stdio.settled(QUIET, SETTLE).await {
                stdio.release_terminal();
            }
        }
        let exit = ProcessExit::from(ended);
        {
            let mut state = process.lock();
            state.phase = Phase::Stopped;
            state.exit = Some(exit);
            state.pidfd = None;
        }
        self.publish_exit(&process, exit);
        process.notify();
        self.exec_done();
    }

    /// Delete of an exec.
    pub(super) async fn delete_exec(&self, exec_id: &str) -> Result<(u32, Option<ProcessExit>)> {
        let process = self.process(exec_id)?;
        let (pid, exit, stdio) = {
            let state = process.lock();
            if !matches!(state.phase, Phase::Created | Phase::Stopped) {
                return Err(TaskError::precondition("cannot delete a running process"));
            }
            (state.pid, state.exit, state.stdio.clone())
        };
        if let Some(stdio) = stdio {
            stdio.drained(DRAIN, DRAIN).await;
            stdio.finish_program(SETTLE).await;
            stdio.close();
        }
        let mut execs = lock(&self.execs);
        if !execs.get(exec_id).is_some_and(|named| Arc::ptr_eq(named, &process)) {
            // Another Delete was faster, and the name may be another exec's by now.
            return Err(TaskError::not_found(format!("process does not exist {exec_id}")));
        }
        // Still under the lock, so that it is not a successor's. An exec that never started has none.
        let _ = fs::remove_file(self.bundle.exec_pid(exec_id));
        execs.remove(exec_id);
        Ok((u32::try_from(pid).unwrap_or(0), exit))
    }
}

/// The process document with the size of its terminal, where one is asked for already: the process may look before
/// anybody could set it from here.
fn with_size(spec: &[u8], size: Option<(u16, u16)>) -> Vec<u8> {
    let document =
        size.and_then(|size| Some((size, serde_json::from_slice::<serde_json::Value>(spec).ok()?)));
    match document {
        Some(((rows, columns), mut document)) => {
            document["consoleSize"] = serde_json::json!({ "height": rows, "width": columns });
            document.to_string().into_bytes()
        }
        None => spec.to_vec(),
    }
}
