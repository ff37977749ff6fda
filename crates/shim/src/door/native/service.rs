//! The calls of `pintle.monitor.v1.Monitor`.
//!
//! ttrpc drops a handler when its client goes. So everything that changes something runs in a task of its own, and the
//! handler only waits for it.

use super::convert;
use super::stdio_sock::Waiting;
use super::upgrade;
use crate::engine::attach::{AttachOptions, Framing};
use crate::engine::container::{Checkpoint, Container};
use crate::engine::execsync::OUTPUT_DEFAULT;
use crate::engine::failure::{Failure, FailureKind};
use crate::engine::hub::Hub;
use crate::engine::logs;
use crate::engine::persist::{STATE_VERSION, VERSION};
use crate::engine::spec::ExecSpec;
use async_trait::async_trait;
use pintle_core::life::Status;
use pintle_core::wall::WallTime;
use pintle_proto::monitor as wire;
use pintle_proto::monitor::service::Monitor;
use protobuf::MessageField;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

/// Followers of the event stream at a time.
const FOLLOWERS_MAX: usize = 64;
/// Time between heartbeats of the event stream.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Events in one answer of `PollEvents`; an event is far below 4 KiB, so that the answer fits into a frame.
const EVENTS_PER_ANSWER: usize = 512;
/// Output that fits into the frame of an answer.
const ANSWER_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;

/// The service.
pub(super) struct Service {
    pub(super) container: Arc<Container>,
    pub(super) waiting: Arc<Waiting>,
    pub(super) bundle: Option<PathBuf>,
    pub(super) runtime: String,
    pub(super) started_at: WallTime,
    /// Set once the shim shall end.
    pub(super) ending: watch::Sender<bool>,
    pub(super) followers: Arc<Semaphore>,
    pub(super) upgrade: upgrade::Requests,
}

type Answer<T> = ttrpc::Result<T>;

/// Runs a changing operation to its end, whether or not somebody waits for it.
async fn detached<T, F>(operation: F) -> Answer<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    match tokio::spawn(operation).await {
        Ok(result) => result.map_err(convert::error),
        Err(_) => Err(convert::error(Failure::new(FailureKind::Unavailable, "shim", "the shim is ending"))),
    }
}

fn signal_of(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(-1)
}

impl Service {
    pub(super) fn new(container: Arc<Container>, waiting: Arc<Waiting>, ending: watch::Sender<bool>) -> Self {
        Self {
            container,
            waiting,
            bundle: None,
            runtime: String::new(),
            started_at: pintle_sys::clock::wall(),
            ending,
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            upgrade: upgrade::Requests::default(),
        }
    }

    fn refuse_if_ending(&self) -> Answer<()> {
        if *self.ending.borrow() {
            return Err(convert::error(Failure::new(FailureKind::Unavailable, "shim", "the shim is ending")));
        }
        Ok(())
    }

    /// Fails where the container belongs to the engine behind another door.
    fn refuse_if_foreign(&self, what: &str) -> Answer<()> {
        let Container { id, door, .. } = &*self.container;
        if *door == "native" {
            return Ok(());
        }
        let message = format!("cannot {what}: container {id} belongs to the engine behind the {door} door");
        Err(convert::error(Failure::precondition(id.as_str(), message)))
    }

    /// The streams of the container or of an exec, and whether they are a terminal's.
    fn streams(&self, exec_id: &str) -> Result<(Arc<Hub>, bool), Failure> {
        if !exec_id.is_empty() {
            let exec = self.container.exec_by_id(exec_id)?;
            return Ok((exec.hub.clone(), exec.terminal));
        }
        let inner = self.container.lock();
        match &inner.hub {
            Some(hub) => Ok((hub.clone(), inner.facts.terminal)),
            None => {
                let id = self.container.id.clone();
                let message = format!("container {id} has not been created");
                Err(Failure::precondition(id, message))
            }
        }
    }
}

fn checkpoint(
    image_path: &str,
    work_path: &str,
    dir: &Path,
    flags: &[(bool, &str)],
    parent: &str,
    args: Vec<String>,
) -> Result<Checkpoint, Failure> {
    if !Path::new(image_path).is_absolute() {
        return Err(Failure::invalid(image_path, format!("image path {image_path:?} is not absolute")));
    }
    let mut all: Vec<String> = flags.iter().filter(|(on, _)| *on).map(|(_, f)| (*f).to_owned()).collect();
    if !parent.is_empty() {
        all.push("--parent-path".to_owned());
        all.push(parent.to_owned());
    }
    all.extend(args);
    let work_path = if work_path.is_empty() { dir.join("criu") } else { PathBuf::from(work_path) };
    for path in [Path::new(image_path), &work_path] {
        std::fs::create_dir_all(path).map_err(|e| Failure::file("create", path, &e))?;
    }
    Ok(Checkpoint { image_path: image_path.into(), work_path, args: all })
}

#[async_trait]
impl Monitor for Service {
    async fn info(&self, _: &TtrpcContext, _: wire::InfoRequest) -> Answer<wire::InfoResponse> {
        let abilities = ["checkpoint", "upgrade", "adopt", "journald", "exec-sync", "stats", "poll-events"];
        Ok(wire::InfoResponse {
            version: VERSION.to_owned(),
            protocol: pintle_proto::PROTOCOL_MINOR,
            pid: std::process::id(),
            id: self.container.id.clone(),
            door: self.container.door.to_owned(),
            abilities: abilities.iter().map(|a| (*a).to_owned()).collect(),
            state_version: STATE_VERSION,
            started_at: self.started_at.unix_nanos(),
            ..Default::default()
        })
    }

    async fn create(&self, _: &TtrpcContext, request: wire::CreateRequest) -> Answer<wire::CreateResponse> {
        self.refuse_if_ending()?;
        let container = self.container.clone();
        let spec = convert::create_spec(request, self.bundle.as_ref(), &self.runtime);
        let (pid, pid_start) = detached(async move { container.create(spec).await }).await?;
        Ok(wire::CreateResponse { pid: convert::unsigned(pid), pid_start, ..Default::default() })
    }

    async fn restore(
        &self,
        _: &TtrpcContext,
        request: wire::RestoreRequest,
    ) -> Answer<wire::RestoreResponse> {
        self.refuse_if_ending()?;
        let flags = [
            (request.tcp_established, "--tcp-established"),
            (request.file_locks, "--file-locks"),
            (request.ext_unix_sk, "--ext-unix-sk"),
            (request.shell_job, "--shell-job"),
        ];
        let dir = &self.container.dir;
        let from = checkpoint(
            &request.image_path,
            &request.work_path,
            dir,
            &flags,
            &request.parent_path,
            request.args,
        )
        .map_err(convert::error)?;
        let create = request.create.into_option().unwrap_or_default();
        let spec = convert::create_spec(create, self.bundle.as_ref(), &self.runtime);
        let container = self.container.clone();
        let (pid, pid_start) = detached(async move { container.restore(spec, from).await }).await?;
        Ok(wire::RestoreResponse { pid: convert::unsigned(pid), pid_start, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, _: wire::StartRequest) -> Answer<wire::StartResponse> {
        let container = self.container.clone();
        let at = detached(async move { container.start().await }).await?;
        Ok(wire::StartResponse { started_at: at.unix_nanos(), ..Default::default() })
    }

    async fn state(&self, _: &TtrpcContext, _: wire::StateRequest) -> Answer<wire::StateResponse> {
        self.container.look();
        Ok(convert::state(&self.container))
    }

    async fn wait(&self, _: &TtrpcContext, request: wire::WaitRequest) -> Answer<wire::WaitResponse> {
        let end = async {
            if request.exec_id.is_empty() {
                Ok(self.container.wait().await)
            } else {
                Ok(self.container.exec_by_id(&request.exec_id)?.wait().await)
            }
        };
        let end: Result<_, Failure> = if request.timeout_ms == 0 {
            end.await
        } else {
            match tokio::time::timeout(Duration::from_millis(request.timeout_ms), end).await {
                Ok(end) => end,
                Err(_) => {
                    let what = if request.exec_id.is_empty() { &self.container.id } else { &request.exec_id };
                    let message = format!("{what} did not end within {} ms", request.timeout_ms);
                    Err(Failure::new(FailureKind::DeadlineExceeded, what.as_str(), message))
                }
            }
        };
        let record = end.map_err(convert::error)?;
        Ok(wire::WaitResponse { exit: MessageField::some(convert::exit(&record)), ..Default::default() })
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        request: wire::EventsRequest,
        stream: ServerStreamSender<wire::Event>,
    ) -> Answer<()> {
        let Ok(_permit) = self.followers.clone().try_acquire_owned() else {
            let message = format!("{FOLLOWERS_MAX} clients follow the events already");
            return Err(convert::error(Failure::new(FailureKind::ResourceExhausted, "events", message)));
        };
        let mut after = request.after;
        loop {
            let events = self.container.events.after(after, EVENTS_PER_ANSWER);
            // Nothing comes after the deletion, but what came before it is told first.
            if events.is_empty() && self.container.lock().life.status() == Status::Deleted {
                return Ok(());
            }
            for event in events {
                after = event.sequence;
                stream.send(&convert::event(event)).await?;
            }
            if tokio::time::timeout(HEARTBEAT, self.container.events.wait(after)).await.is_err() {
                let heartbeat = wire::Event {
                    sequence: after,
                    at: pintle_sys::clock::wall().unix_nanos(),
                    kind: wire::EventKind::HEARTBEAT.into(),
                    ..Default::default()
                };
                // The only way to learn that the client is gone.
                stream.send(&heartbeat).await?;
            }
        }
    }

    async fn poll_events(
        &self,
        _: &TtrpcContext,
        request: wire::EventsRequest,
    ) -> Answer<wire::PollEventsResponse> {
        if request.timeout_ms > 0 {
            let limit = Duration::from_millis(request.timeout_ms);
            // Nothing happened: the answer is empty.
            let _ = tokio::time::timeout(limit, self.container.events.wait(request.after)).await;
        }
        let events = self.container.events.after(request.after, EVENTS_PER_ANSWER);
        Ok(wire::PollEventsResponse {
            events: events.into_iter().map(convert::event).collect(),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: wire::KillRequest) -> Answer<wire::KillResponse> {
        let signal = signal_of(request.signal);
        let container = self.container.clone();
        detached(async move {
            if request.exec_id.is_empty() {
                return container.kill(signal, request.all).await;
            }
            let exec = container.exec_by_id(&request.exec_id)?;
            if request.all { container.kill_exec_tree(&exec, signal) } else { exec.kill(signal).await }
        })
        .await?;
        Ok(wire::KillResponse::default())
    }

    async fn stop(&self, _: &TtrpcContext, request: wire::StopRequest) -> Answer<wire::StopResponse> {
        let signal = if request.signal == 0 { libc::SIGTERM } else { signal_of(request.signal) };
        let signal = crate::engine::control::check_signal(signal).map_err(convert::error)?;
        let timeout = Duration::from_millis(request.timeout_ms);
        let record = self.container.stop(signal, timeout).await.map_err(convert::error)?;
        Ok(wire::StopResponse { exit: MessageField::some(convert::exit(&record)), ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: wire::DeleteRequest) -> Answer<wire::DeleteResponse> {
        self.refuse_if_foreign("delete")?;
        let container = self.container.clone();
        let ending = self.ending.clone();
        let force = request.force;
        let exit = detached(async move {
            let exit = container.delete(force).await?;
            ending.send_replace(true);
            Ok(exit)
        })
        .await?;
        Ok(wire::DeleteResponse {
            exit: convert::field(exit.as_ref().map(convert::exit)),
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, _: wire::PauseRequest) -> Answer<wire::PauseResponse> {
        let container = self.container.clone();
        detached(async move { container.pause().await }).await?;
        Ok(wire::PauseResponse::default())
    }

    async fn resume(&self, _: &TtrpcContext, _: wire::ResumeRequest) -> Answer<wire::ResumeResponse> {
        let container = self.container.clone();
        detached(async move { container.resume().await }).await?;
        Ok(wire::ResumeResponse::default())
    }

    async fn update(&self, _: &TtrpcContext, request: wire::UpdateRequest) -> Answer<wire::UpdateResponse> {
        let container = self.container.clone();
        detached(async move { container.update(&request.resources_json).await }).await?;
        Ok(wire::UpdateResponse::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: wire::ExecRequest) -> Answer<wire::ExecResponse> {
        self.refuse_if_ending()?;
        let client = if request.stdio_token.is_empty() {
            None
        } else {
            let fd = self.waiting.take(&request.stdio_token).await.map_err(convert::error)?;
            let options =
                AttachOptions { stdin: request.stdin, stdout: true, stderr: true, framing: Framing::Native };
            Some((fd, options))
        };
        let spec = ExecSpec {
            exec_id: request.exec_id,
            process_json: request.process_json,
            args: request.args,
            env: request.env,
            cwd: request.cwd,
            terminal: request.terminal,
            user: request.user,
        };
        let size = convert::pair(request.rows, request.columns);
        let pid_file = Some(request.pid_file).filter(|p| !p.is_empty()).map(PathBuf::from);
        let container = self.container.clone();
        let stdin = request.stdin;
        let exec = detached(async move { container.exec(spec, client, stdin, size, pid_file).await }).await?;
        Ok(wire::ExecResponse {
            exec_id: exec.id.clone(),
            pid: convert::unsigned(exec.pid),
            pid_start: exec.pid_start,
            ..Default::default()
        })
    }

    async fn exec_sync(
        &self,
        _: &TtrpcContext,
        request: wire::ExecSyncRequest,
    ) -> Answer<wire::ExecSyncResponse> {
        self.refuse_if_ending()?;
        let client: Option<OwnedFd> = if request.stdio_token.is_empty() {
            None
        } else {
            Some(self.waiting.take(&request.stdio_token).await.map_err(convert::error)?)
        };
        let spec = ExecSpec {
            process_json: request.process_json,
            args: request.args,
            env: request.env,
            cwd: request.cwd,
            terminal: request.terminal,
            user: request.user,
            exec_id: String::new(),
        };
        let timeout = Some(request.timeout_ms).filter(|t| *t > 0).map(Duration::from_millis);
        let max = if request.max_output == 0 { OUTPUT_DEFAULT } else { request.max_output };
        // Without a socket the answer itself has to hold it.
        let max = if client.is_some() { max } else { max.min(ANSWER_MAX as u64) };
        let container = self.container.clone();
        let mut result = detached(async move { container.exec_sync(spec, timeout, max).await }).await?;
        if let Some(client) = client {
            let (out, err) = (std::mem::take(&mut result.stdout), std::mem::take(&mut result.stderr));
            // A client that goes away or does not read loses the output it asked for; the answer still tells the end.
            let held = result.held;
            tokio::spawn(async move {
                super::stdio_sock::deliver(client, out, err).await;
                drop(held);
            });
        }
        let record = pintle_core::record::ExitRecord {
            id: self.container.id.clone(),
            exec_id: String::new(),
            pid: result.pid,
            exit: result.exit,
            oom: Default::default(),
            started_at: Some(result.started_at),
            finished_at: result.finished_at,
            boot_id: pintle_sys::clock::boot_id(),
            log_bytes_lost: 0,
            output_leaked: false,
        };
        Ok(wire::ExecSyncResponse {
            stdout: result.stdout,
            stderr: result.stderr,
            truncated: result.truncated,
            timed_out: result.timed_out,
            exit: MessageField::some(convert::exit(&record)),
            pid: convert::unsigned(result.pid),
            ..Default::default()
        })
    }

    async fn delete_exec(
        &self,
        _: &TtrpcContext,
        request: wire::DeleteExecRequest,
    ) -> Answer<wire::DeleteExecResponse> {
        let container = self.container.clone();
        let record =
            detached(async move { container.delete_exec(&request.exec_id, request.force).await }).await?;
        Ok(wire::DeleteExecResponse {
            exit: MessageField::some(convert::exit(&record)),
            ..Default::default()
        })
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: wire::ResizePtyRequest,
    ) -> Answer<wire::ResizePtyResponse> {
        let (hub, terminal) = self.streams(&request.exec_id).map_err(convert::error)?;
        if !terminal {
            let message = format!("{} has no terminal", self.container.id);
            return Err(convert::error(Failure::precondition(self.container.id.as_str(), message)));
        }
        let (rows, columns) = convert::pair(request.rows, request.columns);
        if rows == 0 || columns == 0 {
            return Err(convert::error(Failure::invalid("rows", "rows and columns must be at least 1")));
        }
        hub.resize(rows, columns).map_err(|e| {
            convert::error(Failure::system("resize terminal of", self.container.id.as_str(), &e))
        })?;
        Ok(wire::ResizePtyResponse::default())
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: wire::CloseStdinRequest,
    ) -> Answer<wire::CloseStdinResponse> {
        let (hub, _) = self.streams(&request.exec_id).map_err(convert::error)?;
        hub.close_stdin();
        Ok(wire::CloseStdinResponse::default())
    }

    async fn attach(&self, _: &TtrpcContext, request: wire::AttachRequest) -> Answer<wire::AttachResponse> {
        let (hub, terminal) = self.streams(&request.exec_id).map_err(convert::error)?;
        let fd = self.waiting.take(&request.stdio_token).await.map_err(convert::error)?;
        let options = AttachOptions {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            framing: Framing::Native,
        };
        hub.attach(fd, options).map_err(|e| {
            let id = self.container.id.as_str();
            convert::error(match e.kind() {
                std::io::ErrorKind::NotConnected => {
                    Failure::precondition(id, format!("cannot attach to container {id}: {e}"))
                }
                _ => Failure::system("attach to", id, &e),
            })
        })?;
        Ok(wire::AttachResponse { terminal, ..Default::default() })
    }

    async fn reopen_log(
        &self,
        _: &TtrpcContext,
        _: wire::ReopenLogRequest,
    ) -> Answer<wire::ReopenLogResponse> {
        let (hub, _) = self.streams("").map_err(convert::error)?;
        if let Err(error) = hub.reopen_logs() {
            let path = convert::state(&self.container).log_path;
            return Err(convert::error(logs::failure(Path::new(&path), &error)));
        }
        let (device, inode) = hub.log_file_id().unwrap_or_default();
        if inode == 0 && !convert::state(&self.container).log_path.is_empty() {
            let message = "the container has ended and its logs are closed";
            return Err(convert::error(Failure::new(
                FailureKind::FailedPrecondition,
                self.container.id.as_str(),
                message,
            )));
        }
        Ok(wire::ReopenLogResponse { inode, device, ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, _: wire::StatsRequest) -> Answer<wire::StatsResponse> {
        let stats = self.container.stats().map_err(convert::error)?;
        let mut answer = convert::stats(&stats);
        answer.oom = MessageField::some(convert::oom(convert::verdict(&self.container)));
        answer.io = MessageField::some(convert::counters(self.container.hub().as_deref()));
        answer.shim_rss = stats.shim_rss;
        answer.shim_anonymous = stats.shim_anonymous;
        Ok(answer)
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: wire::CheckpointRequest,
    ) -> Answer<wire::CheckpointResponse> {
        let flags = [
            (request.tcp_established, "--tcp-established"),
            (request.file_locks, "--file-locks"),
            (request.ext_unix_sk, "--ext-unix-sk"),
            (request.shell_job, "--shell-job"),
            (request.pre_dump, "--pre-dump"),
        ];
        let dir = &self.container.dir;
        let to = checkpoint(
            &request.image_path,
            &request.work_path,
            dir,
            &flags,
            &request.parent_path,
            request.args,
        )
        .map_err(convert::error)?;
        let container = self.container.clone();
        let leave = request.leave_running;
        detached(async move { container.checkpoint(to, leave).await }).await?;
        Ok(wire::CheckpointResponse::default())
    }

    async fn upgrade(
        &self,
        _: &TtrpcContext,
        request: wire::UpgradeRequest,
    ) -> Answer<wire::UpgradeResponse> {
        self.refuse_if_foreign("upgrade its shim")?;
        self.refuse_if_ending()?;
        let old_version = VERSION.to_owned();
        self.upgrade.request(request.executable).await.map_err(convert::error)?;
        Ok(wire::UpgradeResponse { old_version, ..Default::default() })
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        request: wire::ShutdownRequest,
    ) -> Answer<wire::ShutdownResponse> {
        self.refuse_if_foreign("end its shim")?;
        let container = self.container.clone();
        let ending = self.ending.clone();
        detached(async move {
            let alive = container.lock().pidfd.is_some() && container.exit().is_none();
            if alive || container.is_being_created() {
                if !request.force {
                    let message = format!("container {} is alive", container.id);
                    return Err(Failure::precondition(container.id.as_str(), message));
                }
                container.created_or_failed().await;
                if container.lock().pidfd.is_some() {
                    container.stop(libc::SIGKILL, Duration::ZERO).await?;
                }
            }
            ending.send_replace(true);
            Ok(())
        })
        .await?;
        Ok(wire::ShutdownResponse::default())
    }
}
