//! The task service. Every call that changes something runs in a task of its own: the ttrpc library drops a handler
//! whose client has gone or whose time is up, and half a create is worse than a late one.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use pintle_proto::containerd::task as pb;
use pintle_proto::containerd::task_events::TaskExecAdded;
use pintle_proto::containerd::task_ttrpc::Task;
use protobuf::well_known_types::empty::Empty;
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use super::container::{Container, Shared, lock};
use super::error::{Result, TaskError};
use super::metrics;
use super::process::ProcessExit;
use super::publisher::timestamp;
use super::stdio::Wanted;

/// The service, for all containers of the server.
pub(super) struct TaskService {
    pub(super) shared: Arc<Shared>,
    /// Told when the server is to end.
    pub(super) shutdown: Arc<Notify>,
}

/// Runs work to its end whatever becomes of the caller.
pub(super) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => Ok(done?),
        Err(e) => Err(TaskError::unknown(format!("the call ended early: {e}")).into()),
    }
}

fn clamp(size: u32) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}

fn delete_response(pid: u32, exit: Option<ProcessExit>) -> pb::DeleteResponse {
    pb::DeleteResponse {
        pid,
        exit_status: exit.map_or(0, |e| e.status),
        exited_at: exit.map(|e| timestamp(e.at)).into(),
        ..Default::default()
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, req: pb::StateRequest) -> ttrpc::Result<pb::StateResponse> {
        let container = self.shared.get(&req.id)?;
        let process = container.process(&req.exec_id)?;
        Ok(container.state_of(&process))
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        req: pb::CreateTaskRequest,
    ) -> ttrpc::Result<pb::CreateTaskResponse> {
        let shared = self.shared.clone();
        shared.touched.send_modify(|n| *n += 1);
        let container = detached(async move { Container::create(&shared, req).await }).await?;
        Ok(pb::CreateTaskResponse { pid: container.pid(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, req: pb::StartRequest) -> ttrpc::Result<pb::StartResponse> {
        let container = self.shared.get(&req.id)?;
        let pid = detached(async move {
            if req.exec_id.is_empty() {
                container.start().await
            } else {
                container.start_exec(&req.exec_id).await
            }
        })
        .await?;
        Ok(pb::StartResponse { pid, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, req: pb::DeleteRequest) -> ttrpc::Result<pb::DeleteResponse> {
        let container = self.shared.get(&req.id)?;
        let (pid, exit) = detached(async move {
            if req.exec_id.is_empty() {
                container.delete().await.map(|(pid, exit)| (pid, Some(exit)))
            } else {
                container.delete_exec(&req.exec_id).await
            }
        })
        .await?;
        Ok(delete_response(pid, exit))
    }

    async fn pids(&self, _: &TtrpcContext, req: pb::PidsRequest) -> ttrpc::Result<pb::PidsResponse> {
        let container = self.shared.get(&req.id)?;
        Ok(pb::PidsResponse { processes: container.pids(), ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, req: pb::PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.shared.get(&req.id)?;
        detached(async move { container.pause().await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, req: pb::ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.shared.get(&req.id)?;
        detached(async move { container.resume().await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, req: pb::CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.shared.get(&req.id)?;
        detached(async move { container.checkpoint(&req.path, &req.options.unwrap_or_default()).await })
            .await?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, req: pb::KillRequest) -> ttrpc::Result<Empty> {
        let container = self.shared.get(&req.id)?;
        detached(async move { container.kill(&req.exec_id, req.signal, req.all).await }).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, req: pb::ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.shared.get(&req.id)?;
        let wanted =
            Wanted { stdin: req.stdin, stdout: req.stdout, stderr: req.stderr, terminal: req.terminal };
        container.add_exec(&req.exec_id, wanted, &req.spec.unwrap_or_default())?;
        let event = TaskExecAdded { container_id: req.id, exec_id: req.exec_id, ..Default::default() };
        self.shared.publisher.send("/tasks/exec-added", &event);
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: pb::ResizePtyRequest) -> ttrpc::Result<Empty> {
        let container = self.shared.get(&req.id)?;
        container.resize(&req.exec_id, clamp(req.height), clamp(req.width))?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, req: pb::CloseIORequest) -> ttrpc::Result<Empty> {
        let container = self.shared.get(&req.id)?;
        container.close_stdin(&req.exec_id)?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, req: pb::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.shared.get(&req.id)?;
        let resources = req.resources.unwrap_or_default().value;
        detached(async move { container.update(&resources).await }).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, req: pb::WaitRequest) -> ttrpc::Result<pb::WaitResponse> {
        let process = self.shared.get(&req.id)?.process(&req.exec_id)?;
        // Nothing changes by it, so it may end with its client.
        let exit = process.wait().await;
        Ok(pb::WaitResponse {
            exit_status: exit.map_or(0, |e| e.status),
            exited_at: exit.map(|e| timestamp(e.at)).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, req: pb::StatsRequest) -> ttrpc::Result<pb::StatsResponse> {
        let container = self.shared.get(&req.id)?;
        let stats = metrics::read(&container.cgroups())?;
        Ok(pb::StatsResponse { stats: Some(stats).into(), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, req: pb::ConnectRequest) -> ttrpc::Result<pb::ConnectResponse> {
        let task_pid = lock(&self.shared.containers).get(&req.id).map_or(0, |c| c.pid());
        Ok(pb::ConnectResponse { shim_pid: std::process::id(), task_pid, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: pb::ShutdownRequest) -> ttrpc::Result<Empty> {
        if lock(&self.shared.containers).is_empty() && lock(&self.shared.creating).is_empty() {
            self.shutdown.notify_one();
        }
        Ok(Empty::new())
    }
}
