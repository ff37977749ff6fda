//! Running commands in containers.

use super::{ShimBackend, create::words};
use crate::{
    Error as ClientError, ErrorKind, Exec, ExecOptions, ExecSyncOptions, Stdio,
    oci::{
        Container, EXEC_SYNC_LIMIT, Error, ExecSyncError, ExecSyncResponse, Result, Streams,
        streams::{OUTPUT_GRACE, check_command, copy_input, copy_output, pass_sizes, stream_error},
    },
};
use pintle_core::detach::Detach;
use std::{io, time::Duration};
use tokio::io::AsyncWriteExt;

/// What a timed out exec sync says on stderr; kubelets look for it.
const TIMED_OUT: &str = "command timed out";

impl ShimBackend {
    pub(super) async fn exec_container(
        &self,
        container: &Container,
        command: &[String],
        streams: Streams,
    ) -> Result<i32> {
        check_command(command)?;
        let mut options = ExecOptions { stdio: true, ..Default::default() };
        (options.process_json, options.args) = process(container, command, streams.terminal)?;
        options.terminal = streams.terminal;
        options.stdin = streams.stdin.is_some();
        let monitor = self.monitor(container);
        // A task of its own: a caller that goes away while the shim starts the command ends it all the same.
        let starting = tokio::spawn(async move { monitor.exec(&options).await.map(|e| KillOnDrop(Some(e))) });
        let started = starting.await.map_err(|e| Error::System(io::Error::other(e)))?;
        let mut guard = Self::reached(container, started)?;
        let stdio = guard.0.as_mut().and_then(|exec| exec.stdio.take());
        let (Some(exec), Some(stdio)) = (&guard.0, stdio) else {
            return Err(Error::Unsupported("the exec has no streams".into()));
        };
        let code = run(exec, stdio, streams).await?;
        // It has ended; nothing is left to be killed.
        if let Some(exec) = guard.0.take() {
            let _ = exec.delete(false).await;
        }
        Ok(code)
    }

    pub(super) async fn exec_sync_container(
        &self,
        container: &Container,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse> {
        let failed = |source: Error, stderr: String| {
            Error::ExecSync(Box::new(ExecSyncError {
                stdout: Vec::new(),
                stderr: stderr.into_bytes(),
                exit_code: -1,
                source: Box::new(source),
            }))
        };
        check_command(command).map_err(|e| failed(e, String::new()))?;
        let mut options = ExecSyncOptions {
            terminal: container.terminal(),
            timeout: (!timeout.is_zero()).then_some(timeout),
            max_output: Some(EXEC_SYNC_LIMIT),
            ..Default::default()
        };
        (options.process_json, options.args) =
            process(container, command, container.terminal()).map_err(|e| failed(e, String::new()))?;
        let result = self.monitor(container).exec_sync(&options).await;
        let output = result.map_err(|error| match error {
            ClientError::Call(call) if call.kind == ErrorKind::RuntimeFailed => {
                let text = words(&call);
                failed(Error::Monitor(call.into()), text)
            }
            error => failed(error.into(), String::new()),
        })?;
        Ok(match output.timed_out {
            // What it wrote until then is kept; code and text are what probes rely on.
            true => ExecSyncResponse {
                stdout: output.stdout,
                stderr: TIMED_OUT.into(),
                exit_code: -1,
                truncated: output.truncated,
            },
            false => ExecSyncResponse {
                stdout: output.stdout,
                stderr: output.stderr,
                exit_code: output.exit.status,
                truncated: output.truncated,
            },
        })
    }
}

/// The process section, or bare arguments if the configuration is not known here: the shim takes the
/// container's own then.
fn process(container: &Container, command: &[String], terminal: bool) -> Result<(String, Vec<String>)> {
    match container.spec().exec_process(command, terminal) {
        Some(process) => Ok((serde_json::to_string(&process)?, Vec::new())),
        None => Ok((String::new(), command.to_vec())),
    }
}

/// A caller that goes away ends its command, also while it is being started.
struct KillOnDrop(Option<Exec>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let (Some(exec), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            let _ = exec.delete(true).await;
        });
    }
}

async fn run(exec: &Exec, stdio: Stdio, streams: Streams) -> Result<i32> {
    let Stdio { mut stdin, stdout, stderr, control } = stdio;
    let input = async {
        if let Some(source) = streams.stdin {
            // Keys to detach mean nothing to an exec.
            copy_input(source, &mut stdin, Detach::new(Vec::new())).await?;
            stdin.shutdown().await?;
        }
        io::Result::Ok(())
    };
    let output = async {
        tokio::try_join!(copy_output(stdout, streams.stdout), copy_output(stderr, streams.stderr)).map(drop)
    };
    let sizes = pass_sizes(streams.resize, control);
    let wait = exec.wait(None);
    tokio::pin!(input, output, sizes, wait);
    let (mut input_done, mut sizes_done) = (false, false);
    let mut copied: Option<io::Result<()>> = None;
    let mut failed = None;
    let exit = loop {
        tokio::select! {
            exit = &mut wait => break exit?,
            result = &mut output, if copied.is_none() => copied = Some(result),
            result = &mut input, if !input_done => {
                input_done = true;
                failed = result.err();
            }
            () = &mut sizes, if !sizes_done => sizes_done = true,
        }
    };
    // Background processes may keep the streams open; they are waited for, but not for ever.
    let copied = match copied {
        Some(copied) => copied,
        None => tokio::time::timeout(OUTPUT_GRACE, output).await.unwrap_or(Ok(())),
    };
    copied.map_err(stream_error)?;
    failed.map_or(Ok(()), Err).map_err(stream_error)?;
    Ok(exit.status)
}
