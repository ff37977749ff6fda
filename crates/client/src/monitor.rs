//! One shim as a handle: every call of the protocol, with time limits and reconnection.

use crate::{
    connection::Shared,
    error::{Error, Result},
    events::EventStream,
    exec::{Attached, Exec},
    options::{CheckpointOptions, CreateOptions, ExecOptions, ExecSyncOptions, RestoreOptions, text},
    stdio::Pending,
    types::{Event, ExecOutput, Exit, Info, ProcessId, State, Stats, millis, pid, time},
};
use pintle_proto::monitor::{self as wire, service::MonitorClient};
use protobuf::MessageField;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::io::AsyncReadExt;

/// Time limit of calls that have none of their own.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Added to the limit of a call that the shim itself ends in time.
const GRACE: Duration = Duration::from_secs(10);
/// Largest output that an answer carries inline; more travels on the packet socket.
const INLINE_OUTPUT: u64 = 1024 * 1024;

/// The shim of one container. Cheap to clone; clones share one connection.
///
/// The connection is made at the first call and again after it broke, so a handle stays good when
/// the shim is replaced in place. Every call has a time limit ([`DEFAULT_TIMEOUT`], see
/// [`with_timeout`](Self::with_timeout)) and may be cancelled by dropping its future; the shim
/// carries out a changing call all the same.
///
/// ```no_run
/// # async fn run() -> pintle_client::Result<()> {
/// use pintle_client::{CreateOptions, LogOptions, Monitor, SpawnConfig};
/// let monitor = Monitor::spawn(SpawnConfig::new("web-1")).await?;
/// let mut options = CreateOptions::new("/bundles/web");
/// options.logs.push(LogOptions::file("/var/log/web-1.log"));
/// monitor.create(&options).await?;
/// monitor.start().await?;
/// let exit = monitor.wait(None).await?;
/// println!("ended with {}", exit.status);
/// monitor.delete(false).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Monitor {
    shared: Arc<Shared>,
    timeout: Duration,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Monitor {
    /// A handle on the shim of a state directory. Nothing is connected yet; the first call tells
    /// [`Error::NotRunning`] if no shim is there.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let shared = Shared::new(dir.into());
        Self { shared: Arc::new(shared), timeout: DEFAULT_TIMEOUT }
    }

    /// Connects to the shim of a state directory.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if no shim is there.
    pub async fn connect(dir: impl Into<PathBuf>) -> Result<Self> {
        let monitor = Self::at(dir);
        monitor.shared.connection().await?;
        Ok(monitor)
    }

    /// The same handle with another time limit for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { shared: self.shared.clone(), timeout }
    }

    /// State directory of the container.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Versions and abilities of the shim.
    ///
    /// # Errors
    /// If the shim does not answer.
    pub async fn info(&self) -> Result<Info> {
        let request = wire::InfoRequest::new();
        let send = async |c: MonitorClient, x| c.info(x, &request).await;
        Ok(self.shared.call("Info", true, Some(self.timeout), send).await?.into())
    }

    /// Runs the runtime's create; the container's first process then waits for
    /// [`start`](Self::start).
    ///
    /// # Errors
    /// If the bundle, a log or the runtime is at fault; nothing is left behind then.
    pub async fn create(&self, options: &CreateOptions) -> Result<ProcessId> {
        let request = options.to_wire()?;
        let limit = options.limit().saturating_add(GRACE);
        let send = async |c: MonitorClient, x| c.create(x, &request).await;
        let answer = self.shared.call("Create", false, Some(limit), send).await?;
        Ok(ProcessId { pid: pid(answer.pid), start: answer.pid_start })
    }

    /// Runs the runtime's start; gives the time of the start.
    ///
    /// # Errors
    /// If the container is not just created, or the runtime fails.
    pub async fn start(&self) -> Result<Option<SystemTime>> {
        let request = wire::StartRequest::new();
        let send = async |c: MonitorClient, x| c.start(x, &request).await;
        Ok(time(self.shared.call("Start", false, Some(self.timeout), send).await?.started_at))
    }

    /// A snapshot of the container and its execs. Runs nothing and never blocks in the shim.
    ///
    /// # Errors
    /// If the shim does not answer.
    pub async fn state(&self) -> Result<State> {
        let request = wire::StateRequest::new();
        let send = async |c: MonitorClient, x| c.state(x, &request).await;
        Ok(self.shared.call("State", true, Some(self.timeout), send).await?.into())
    }

    /// Waits for the end of the container; `None` waits for ever. Everything it wrote is in its log
    /// by then, and its exit record is on disk.
    ///
    /// # Errors
    /// [`ErrorKind::DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) when the time is up.
    pub async fn wait(&self, limit: Option<Duration>) -> Result<Exit> {
        self.wait_for("", limit).await
    }

    /// Waits for the end of an exec, as [`wait`](Self::wait) does for the container.
    ///
    /// # Errors
    /// As `wait`, and if there is no such exec.
    pub async fn wait_exec(&self, exec_id: &str, limit: Option<Duration>) -> Result<Exit> {
        self.wait_for(exec_id, limit).await
    }

    async fn wait_for(&self, exec_id: &str, limit: Option<Duration>) -> Result<Exit> {
        let mut request = wire::WaitRequest::new();
        request.exec_id = exec_id.into();
        request.timeout_ms = limit.map(|l| millis(l).max(1)).unwrap_or_default();
        let send = async |c: MonitorClient, x| c.wait(x, &request).await;
        exit(self.shared.call("Wait", true, limit.map(|l| l.saturating_add(GRACE)), send).await?.exit)
    }

    /// The events after a sequence number (0: all the shim still holds), waiting up to `limit` for
    /// the first of them.
    ///
    /// # Errors
    /// If the shim does not answer.
    pub async fn poll_events(&self, after: u64, limit: Duration) -> Result<Vec<Event>> {
        let mut request = wire::EventsRequest::new();
        request.after = after;
        request.timeout_ms = millis(limit);
        let send = async |c: MonitorClient, x| c.poll_events(x, &request).await;
        let answer = self.shared.call("PollEvents", true, Some(limit.saturating_add(GRACE)), send).await?;
        Ok(answer.events.into_iter().filter_map(Event::from_wire).collect())
    }

    /// Follows the events after a sequence number (0: all the shim still holds). The stream
    /// survives a shim that is replaced, and ends after the container is deleted.
    pub fn events(&self, after: u64) -> EventStream {
        EventStream::new(self.clone(), after)
    }

    /// Sends a signal to the container's first process, or with `all` to all its processes.
    ///
    /// # Errors
    /// If it is not running, or the signal is not one of 1 to 64.
    pub async fn kill(&self, signal: i32, all: bool) -> Result<()> {
        self.kill_process("", signal, all).await
    }

    /// Sends a signal to an exec.
    ///
    /// # Errors
    /// If there is no such exec, or it has ended.
    pub async fn kill_exec(&self, exec_id: &str, signal: i32) -> Result<()> {
        self.kill_process(exec_id, signal, false).await
    }

    async fn kill_process(&self, exec_id: &str, signal: i32, all: bool) -> Result<()> {
        let mut request = wire::KillRequest::new();
        request.exec_id = exec_id.into();
        request.signal = u32::try_from(signal).unwrap_or(u32::MAX);
        request.all = all;
        let send = async |c: MonitorClient, x| c.kill(x, &request).await;
        self.shared.call("Kill", false, Some(self.timeout), send).await.map(drop)
    }

    /// Sends the stop signal (`None`: the image's, or SIGTERM), SIGKILL after the timeout, and
    /// returns when the container has ended. A later call may shorten the timeout of one under
    /// way, never lengthen it. There is no time limit but the caller's own.
    ///
    /// # Errors
    /// If the shim does not answer.
    pub async fn stop(&self, signal: Option<i32>, timeout: Duration) -> Result<Exit> {
        let mut request = wire::StopRequest::new();
        request.signal = signal.map(|s| u32::try_from(s).unwrap_or(u32::MAX)).unwrap_or_default();
        request.timeout_ms = millis(timeout);
        let send = async |c: MonitorClient, x| c.stop(x, &request).await;
        exit(self.shared.call("Stop", true, None, send).await?.exit)
    }

    /// Removes a container that has ended (or any, with `force`); the shim then ends. Gives how it
    /// ended, if it had begun to run.
    ///
    /// # Errors
    /// If it still runs and `force` is not set.
    pub async fn delete(&self, force: bool) -> Result<Option<Exit>> {
        let mut request = wire::DeleteRequest::new();
        request.force = force;
        let send = async |c: MonitorClient, x| c.delete(x, &request).await;
        let answer = self.shared.call("Delete", false, Some(self.timeout), send).await?;
        Ok(answer.exit.into_option().map(Exit::from_wire))
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// If it is not running, or the runtime fails.
    pub async fn pause(&self) -> Result<()> {
        let request = wire::PauseRequest::new();
        let send = async |c: MonitorClient, x| c.pause(x, &request).await;
        self.shared.call("Pause", false, Some(self.timeout), send).await.map(drop)
    }

    /// Thaws all processes.
    ///
    /// # Errors
    /// If it is not paused, or the runtime fails.
    pub async fn resume(&self) -> Result<()> {
        let request = wire::ResumeRequest::new();
        let send = async |c: MonitorClient, x| c.resume(x, &request).await;
        self.shared.call("Resume", false, Some(self.timeout), send).await.map(drop)
    }

    /// Changes resource limits: `linux.resources` of the OCI runtime specification, as JSON.
    ///
    /// # Errors
    /// If the text is not what the runtime takes.
    pub async fn update(&self, resources_json: &str) -> Result<()> {
        let mut request = wire::UpdateRequest::new();
        request.resources_json = resources_json.into();
        let send = async |c: MonitorClient, x| c.update(x, &request).await;
        self.shared.call("Update", false, Some(self.timeout), send).await.map(drop)
    }

    /// Starts one more process in the container.
    ///
    /// # Errors
    /// If the container is not running or the process cannot be started; then nothing runs.
    pub async fn exec(&self, options: &ExecOptions) -> Result<Exec> {
        let mut request = options.to_wire()?;
        let pending = match options.stdio {
            true => Some(Pending::connect(self.dir()).await?),
            false => None,
        };
        request.stdio_token = pending.as_ref().map(|p| p.token.clone()).unwrap_or_default();
        let send = async |c: MonitorClient, x| c.exec(x, &request).await;
        let answer = self.shared.call("Exec", false, Some(self.timeout), send).await?;
        Ok(Exec {
            monitor: self.clone(),
            id: answer.exec_id,
            process: ProcessId { pid: pid(answer.pid), start: answer.pid_start },
            stdio: pending.map(Pending::into_stdio),
        })
    }

    /// Runs a process to its end and gives its output.
    ///
    /// # Errors
    /// If the process cannot be started. One that fails, is killed or overruns its time is no
    /// error: see [`ExecOutput`].
    pub async fn exec_sync(&self, options: &ExecSyncOptions) -> Result<ExecOutput> {
        let mut request = options.to_wire()?;
        let limit = options.timeout.map(|t| t.saturating_add(GRACE).saturating_add(self.timeout));
        let inline = options.max_output.is_some_and(|max| (1..=INLINE_OUTPUT).contains(&max));
        let pending = match inline {
            true => None,
            false => Some(Pending::connect(self.dir()).await?),
        };
        request.stdio_token = pending.as_ref().map(|p| p.token.clone()).unwrap_or_default();
        let send = async |c: MonitorClient, x| c.exec_sync(x, &request).await;
        let call = self.shared.call("ExecSync", false, limit, send);
        let (answer, stdout, stderr) = match pending {
            None => {
                let mut answer = call.await?;
                let output = (std::mem::take(&mut answer.stdout), std::mem::take(&mut answer.stderr));
                (answer, output.0, output.1)
            }
            Some(pending) => {
                let streams = pending.into_stdio();
                let (mut stdout, mut stderr) = (streams.stdout, streams.stderr);
                let collect = async move {
                    let (mut out, mut err) = (Vec::new(), Vec::new());
                    tokio::try_join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err))?;
                    io::Result::Ok((out, err))
                };
                tokio::pin!(collect, call);
                // The output cannot end the call, and a call that fails ends the waiting for output.
                let mut collected = None;
                let answer = loop {
                    tokio::select! {
                        answer = &mut call => break answer?,
                        result = &mut collect, if collected.is_none() => collected = Some(result),
                    }
                };
                let result = match collected {
                    Some(result) => result,
                    None => collect.await,
                };
                let (out, err) = result.map_err(Error::io("reading the output of an exec"))?;
                (answer, out, err)
            }
        };
        Ok(ExecOutput {
            stdout,
            stderr,
            truncated: answer.truncated,
            timed_out: answer.timed_out,
            exit: exit(answer.exit)?,
            pid: pid(answer.pid),
        })
    }

    /// Forgets an exec that has ended; with `force`, kills it first.
    ///
    /// # Errors
    /// If there is no such exec, or it runs and `force` is not set.
    pub async fn delete_exec(&self, exec_id: &str, force: bool) -> Result<Option<Exit>> {
        let mut request = wire::DeleteExecRequest::new();
        request.exec_id = exec_id.into();
        request.force = force;
        let send = async |c: MonitorClient, x| c.delete_exec(x, &request).await;
        let answer = self.shared.call("DeleteExec", false, Some(self.timeout), send).await?;
        Ok(answer.exit.into_option().map(Exit::from_wire))
    }

    /// Sets the size of a terminal; an empty `exec_id` means the container's.
    ///
    /// # Errors
    /// If it has no terminal.
    pub async fn resize_pty(&self, exec_id: &str, columns: u16, rows: u16) -> Result<()> {
        let mut request = wire::ResizePtyRequest::new();
        request.exec_id = exec_id.into();
        request.columns = columns.into();
        request.rows = rows.into();
        let send = async |c: MonitorClient, x| c.resize_pty(x, &request).await;
        self.shared.call("ResizePty", false, Some(self.timeout), send).await.map(drop)
    }

    /// Closes stdin of a process (empty `exec_id`: the container's) once everything sent is
    /// written.
    ///
    /// # Errors
    /// If there is no such process.
    pub async fn close_stdin(&self, exec_id: &str) -> Result<()> {
        let mut request = wire::CloseStdinRequest::new();
        request.exec_id = exec_id.into();
        let send = async |c: MonitorClient, x| c.close_stdin(x, &request).await;
        self.shared.call("CloseStdin", false, Some(self.timeout), send).await.map(drop)
    }

    /// Attaches to the container, with output from now on; `stdin` feeds its stdin too.
    ///
    /// # Errors
    /// If the container has ended or never was.
    pub async fn attach(&self, stdin: bool) -> Result<Attached> {
        self.attach_to("", stdin).await
    }

    /// Attaches to an exec.
    ///
    /// # Errors
    /// If there is no such exec.
    pub async fn attach_exec(&self, exec_id: &str, stdin: bool) -> Result<Attached> {
        self.attach_to(exec_id, stdin).await
    }

    async fn attach_to(&self, exec_id: &str, stdin: bool) -> Result<Attached> {
        let pending = Pending::connect(self.dir()).await?;
        let mut request = wire::AttachRequest::new();
        request.exec_id = exec_id.into();
        request.stdio_token = pending.token.clone();
        request.stdin = stdin;
        request.stdout = true;
        request.stderr = true;
        let send = async |c: MonitorClient, x| c.attach(x, &request).await;
        let answer = self.shared.call("Attach", false, Some(self.timeout), send).await?;
        Ok(Attached { terminal: answer.terminal, stdio: pending.into_stdio() })
    }

    /// Opens the log files anew: after it returns nothing more is written to the old ones. Gives
    /// device and inode of the first log file.
    ///
    /// # Errors
    /// If a file cannot be opened; logging to the old one goes on then.
    pub async fn reopen_log(&self) -> Result<Option<(u64, u64)>> {
        let request = wire::ReopenLogRequest::new();
        let send = async |c: MonitorClient, x| c.reopen_log(x, &request).await;
        let answer = self.shared.call("ReopenLog", false, Some(self.timeout), send).await?;
        Ok((answer.inode != 0).then_some((answer.device, answer.inode)))
    }

    /// Resource usage, read from the cgroup.
    ///
    /// # Errors
    /// If the cgroup cannot be read.
    pub async fn stats(&self) -> Result<Stats> {
        let request = wire::StatsRequest::new();
        let send = async |c: MonitorClient, x| c.stats(x, &request).await;
        self.shared.call("Stats", true, Some(self.timeout), send).await
    }

    /// Checkpoints the container with CRIU, through the runtime. No time limit but the caller's.
    ///
    /// # Errors
    /// If the runtime fails; see its log in the work directory.
    pub async fn checkpoint(&self, options: &CheckpointOptions) -> Result<()> {
        let request = options.to_wire()?;
        let send = async |c: MonitorClient, x| c.checkpoint(x, &request).await;
        self.shared.call("Checkpoint", false, None, send).await.map(drop)
    }

    /// Restores a container with CRIU, through the runtime, instead of create and start.
    ///
    /// # Errors
    /// If the runtime fails; see its log in the work directory.
    pub async fn restore(&self, options: &RestoreOptions) -> Result<ProcessId> {
        let request = options.to_wire()?;
        let limit = options.create.limit().saturating_add(GRACE);
        let send = async |c: MonitorClient, x| c.restore(x, &request).await;
        let answer = self.shared.call("Restore", false, Some(limit), send).await?;
        Ok(ProcessId { pid: pid(answer.pid), start: answer.pid_start })
    }

    /// Replaces the running shim by another executable in place (`None`: the path it was started
    /// from); gives the version before.
    ///
    /// # Errors
    /// If the executable does not take over; the old shim goes on then.
    pub async fn upgrade(&self, executable: Option<&Path>) -> Result<String> {
        let mut request = wire::UpgradeRequest::new();
        request.executable = executable.map_or(Ok(String::new()), text)?;
        let connection = self.shared.connection().await?;
        let send = async |c: MonitorClient, x| c.upgrade(x, &request).await;
        let old = self.shared.call("Upgrade", false, Some(self.timeout), send).await?.old_version;
        // The answer comes before the change, and the change closes the connection.
        let changed = async {
            while !connection.is_closed() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let timeout =
            || Error::Timeout { dir: self.shared.dir.clone(), call: "Upgrade", limit: self.timeout };
        tokio::time::timeout(self.timeout, changed).await.map_err(|_| timeout())?;
        Ok(old)
    }

    /// Ends the shim. Refused while the container lives, unless `force`, which kills it first.
    ///
    /// # Errors
    /// If the container lives and `force` is not set.
    pub async fn shutdown(&self, force: bool) -> Result<()> {
        let mut request = wire::ShutdownRequest::new();
        request.force = force;
        let send = async |c: MonitorClient, x| c.shutdown(x, &request).await;
        match self.shared.call("Shutdown", false, Some(self.timeout), send).await {
            // It may be gone before its answer is.
            Ok(_) | Err(Error::Disconnected { .. } | Error::NotRunning { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn exit(exit: MessageField<wire::Exit>) -> Result<Exit> {
    let exit = exit.into_option().map(Exit::from_wire);
    exit.ok_or_else(|| Error::Protocol("the answer does not say how the process ended".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_send<T: Send>(_: T) {}

    #[tokio::test]
    async fn calls_may_move_between_threads() {
        let monitor = Monitor::at("/nowhere");
        assert_send(monitor.info());
        assert_send(monitor.exec(&ExecOptions::default()));
        assert_send(monitor.exec_sync(&ExecSyncOptions::default()));
        assert_send(monitor.stop(None, Duration::ZERO));
        assert_send(monitor.attach(true));
        assert_send(monitor.events(0).next());
    }

    #[tokio::test]
    async fn calls_without_a_shim_say_so() {
        let monitor = Monitor::at("/nowhere");
        assert!(matches!(monitor.state().await, Err(Error::NotRunning { .. })));
        assert!(monitor.attach(false).await.unwrap_err().is_unreachable());
        monitor.shutdown(true).await.unwrap();
    }

    #[tokio::test]
    async fn the_longest_limits_are_limits() {
        let monitor = Monitor::at("/nowhere");
        assert!(monitor.wait(Some(Duration::MAX)).await.is_err());
        assert!(monitor.poll_events(0, Duration::MAX).await.is_err());
        let forever = Some(Duration::MAX);
        let create = CreateOptions { timeout: forever, ..CreateOptions::new("/b") };
        assert!(monitor.create(&create).await.is_err());
        assert!(monitor.restore(&RestoreOptions { create, ..Default::default() }).await.is_err());
        let mut exec = ExecSyncOptions { timeout: forever, ..ExecSyncOptions::new(["true"]) };
        assert!(monitor.exec_sync(&exec).await.is_err());
        exec.max_output = Some(1);
        assert!(monitor.exec_sync(&exec).await.is_err());
    }
}
