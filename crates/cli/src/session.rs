//! A terminal or pipes connected to a process in a container: exec, attach, and run in the foreground.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lexopt::prelude::*;
use pintle_client::{Error, ExecOptions, ExecSyncOptions, Exit, Monitor, Stdio, StdioEnd};
use pintle_core::detach::Detach;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::args::{self, text, unknown, usage};
use crate::context::Context;
use crate::signal::signal;
use crate::{output, terminal};

const EXEC: &str = "\
usage: pintle exec [options] ID PROGRAM [ARGUMENT...]

  -i, --interactive     pass on standard input
  -t, --tty             give the process a terminal
  -d, --detach          do not wait; print the id of the exec
  -e, --env NAME=VALUE  environment variable; NAME alone passes ours on; may be repeated
  -w, --cwd DIR         working directory
  -u, --user UID[:GID]  user
      --timeout TIME    kill the process and all that it started after this time (exit status 124);
                        its output is printed at its end; excludes -i and -d
      --pid-file FILE   file that gets the pid
      --detach-keys K   keys that leave the session; default ctrl-p,ctrl-q
";

const ATTACH: &str = "\
usage: pintle attach [options] ID

      --no-stdin        do not pass on standard input
      --detach-keys K   keys that leave the session; default ctrl-p,ctrl-q
      --exec EXEC       attach to this exec instead of the container's first process
";

/// SIGINT is passed on so many times less one; the last one is for us, as with docker: the first process of a container
/// does not die of it unless it has a handler.
const INTERRUPTS: u32 = 3;

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All output has come.
    Finished,
    /// The user typed the detach keys.
    Detached,
    /// The user interrupted us again and again, which the process did not mind.
    Interrupted,
    /// The shim let go of us; the process may run on.
    Dropped(String),
}

/// Whose session it is: where signals go.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) monitor: Monitor,
    /// The exec; empty for the container's first process.
    pub(crate) exec: String,
}

impl Peer {
    async fn kill(&self, signal: i32) {
        // A process that is gone needs no signal.
        let _ = match self.exec.as_str() {
            "" => self.monitor.kill(signal, false).await,
            exec => self.monitor.kill_exec(exec, signal).await,
        };
    }
}

/// The detach keys where nobody names others.
pub(crate) const KEYS: &str = "ctrl-p,ctrl-q";

/// Reads a list of detach keys.
pub(crate) fn keys(list: &str) -> Result<Detach> {
    let wrong = |key| usage(format!("{key} is not a key; write them like ctrl-p,ctrl-q or a,b"));
    Detach::parse(list).map_err(wrong)
}

/// Connects our standard streams with a process until its output ends.
///
/// With a terminal on both sides ours becomes raw: every key but the detach keys goes to the process.
/// Without, signals that we get are passed on. The caller restores the terminal (it does so on every way
/// out of the program).
pub(crate) async fn run(stdio: Stdio, peer: Peer, tty: bool, stdin: bool, keys: Detach) -> Result<End> {
    let Stdio { stdin: mut to, stdout: mut from, stderr: mut from_err, control } = stdio;
    // Signals are caught first: one that ended us in raw mode would leave the terminal in it.
    // SIGWINCH.
    let mut window = signal(28)?;
    let (passed, mut signals) = mpsc::channel(8);
    for number in [1, 2, 3, 10, 12, 15] {
        let mut stream = signal(number)?;
        let passed = passed.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if passed.send(number).await.is_err() {
                    return;
                }
            }
        });
    }
    let raw = tty && stdin && terminal::is_terminal();
    if raw {
        terminal::raw().context("set the terminal to raw mode")?;
    }
    if tty {
        if let Some((columns, rows)) = terminal::size() {
            let _ = control.resize(columns, rows).await;
        }
    }

    let (detach, mut detached) = mpsc::channel::<()>(1);
    let feeder = stdin.then(|| {
        // None are ever found in what nobody types.
        let mut keys = if raw { keys } else { Detach::new(Vec::new()) };
        let mut typed = read_stdin();
        tokio::spawn(async move {
            while let Some(bytes) = typed.recv().await {
                let mut send = Vec::with_capacity(bytes.len());
                let done = keys.feed(&bytes, &mut send);
                if !send.is_empty() && to.write_all(&send).await.is_err() {
                    return;
                }
                if done {
                    let _ = detach.send(()).await;
                    return;
                }
            }
            let _ = to.shutdown().await;
        })
    });
    let pumps = async {
        let out = async { copy(&mut from, &mut tokio::io::stdout()).await };
        let err = async { copy(&mut from_err, &mut tokio::io::stderr()).await };
        let (a, b) = tokio::join!(out, err);
        a.and(b)
    };
    tokio::pin!(pumps);

    let mut interrupts = 0;
    let end = loop {
        tokio::select! {
            result = &mut pumps => break match result {
                Ok(()) => End::Finished,
                Err(e) => match control.closed().await {
                    StdioEnd::Dropped(why) | StdioEnd::Lost(why) => End::Dropped(why),
                    StdioEnd::Finished => return Err(e).context("write the output"),
                },
            },
            Some(()) = detached.recv() => break End::Detached,
            Some(number) = signals.recv() => {
                interrupts += u32::from(number == 2);
                if interrupts == INTERRUPTS {
                    break End::Interrupted;
                }
                // Not waited for: a shim that does not answer must not keep the next signal from us.
                let peer = peer.clone();
                tokio::spawn(async move { peer.kill(number).await });
            }
            Some(()) = window.recv() => {
                if let (true, Some((columns, rows))) = (tty, terminal::size()) {
                    let _ = control.resize(columns, rows).await;
                }
            }
        }
    };
    if let Some(feeder) = feeder {
        feeder.abort();
    }
    terminal::restore();
    Ok(end)
}

/// Copies and flushes each piece at once: a prompt without a newline is to be seen.
///
/// A reader of ours that is gone ends nothing: the process must not stop for it, so the rest is read
/// and thrown away.
async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
) -> std::io::Result<()> {
    let mut buf = vec![0; 32 * 1024];
    let mut open = true;
    loop {
        let n = from.read(&mut buf).await?;
        if n == 0 {
            return Ok(());
        }
        if open {
            open = to.write_all(&buf[..n]).await.is_ok() && to.flush().await.is_ok();
        }
    }
}

/// Reads standard input on a thread of its own: its descriptor is shared with the shell that started us
/// and must not be made non-blocking.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (tx, rx) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut input = std::io::stdin();
        let mut buf = vec![0; 32 * 1024];
        loop {
            match input.read(&mut buf) {
                Ok(0) => return,
                Ok(n) => {
                    if tx.blocking_send(buf[..n].to_vec()).is_err() {
                        return;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    rx
}

/// What the user is told when a session ended before its process, and the exit status for it.
pub(crate) fn left(end: &End) -> Option<i32> {
    match end {
        End::Finished => None,
        End::Detached => {
            eprintln!("\r\ndetached");
            Some(0)
        }
        End::Interrupted => {
            eprintln!("pintle: interrupted {INTERRUPTS} times: the process is left to itself");
            Some(130)
        }
        End::Dropped(why) => {
            eprintln!("pintle: output is lost from here on: {why}");
            None
        }
    }
}

pub(crate) async fn exec(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let mut options = ExecOptions { stdio: true, ..ExecOptions::default() };
    let (mut interactive, mut detached, mut timeout) = (false, false, None);
    let mut keys = KEYS.to_string();
    let mut id = None;
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('i') | Long("interactive") => interactive = true,
            Short('t') | Long("tty") => options.terminal = true,
            Short('d') | Long("detach") => detached = true,
            Short('e') | Long("env") => options.env.extend(args::variable(text(parser.value()?)?)?),
            Short('w') | Long("cwd") => options.cwd = text(parser.value()?)?,
            Short('u') | Long("user") => options.user = text(parser.value()?)?,
            Long("timeout") => timeout = Some(args::duration(&text(parser.value()?)?)?),
            Long("pid-file") => options.pid_file = Some(crate::context::absolute(parser.value()?)?),
            Long("detach-keys") => keys = text(parser.value()?)?,
            Value(v) => {
                if id.is_none() {
                    id = Some(text(v)?);
                } else {
                    options.args.push(text(v)?);
                    for rest in parser.raw_args()? {
                        options.args.push(text(rest)?);
                    }
                }
            }
            other => return Err(unknown(other, EXEC)),
        }
    }
    let id = id.ok_or_else(|| usage("the id of a container is missing"))?;
    if options.args.is_empty() {
        return Err(usage("the program to run is missing"));
    }
    let keys = self::keys(&keys)?;
    if timeout.is_some() && (interactive || detached) {
        return Err(usage("--timeout excludes -i and -d"));
    }
    let monitor = cx.monitor(&id)?;
    if let Some(timeout) = timeout {
        return exec_sync(&monitor, options, timeout).await;
    }
    options.stdin = interactive && !detached;
    options.stdio = !detached;
    options.size = if options.terminal { terminal::size() } else { None };
    let mut exec = monitor.exec(&options).await?;
    if detached {
        output::line(&exec.id)?;
        return Ok(0);
    }
    let stdio = exec.stdio.take().context("the shim gave no streams")?;
    let peer = Peer { monitor: monitor.clone(), exec: exec.id.clone() };
    let end = run(stdio, peer, options.terminal, interactive, keys).await?;
    if let Some(code) = left(&end) {
        eprintln!("pintle attach --exec {} {id} returns to it", exec.id);
        return Ok(code);
    }
    let exit = exec.wait(None).await?;
    let _ = exec.delete(false).await;
    Ok(exit.status)
}

async fn exec_sync(monitor: &Monitor, options: ExecOptions, timeout: Duration) -> Result<i32> {
    let sync = ExecSyncOptions {
        args: options.args,
        env: options.env,
        cwd: options.cwd,
        user: options.user,
        terminal: options.terminal,
        timeout: Some(timeout),
        ..ExecSyncOptions::default()
    };
    let done = monitor.exec_sync(&sync).await?;
    let _ = tokio::io::stderr().write_all(&done.stderr).await;
    output::print(&done.stdout)?;
    if done.truncated {
        eprintln!("pintle: the output was cut");
    }
    if done.timed_out {
        eprintln!("pintle: command timed out");
        return Ok(124);
    }
    Ok(done.exit.status)
}

pub(crate) async fn attach(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let mut stdin = true;
    let mut keys = KEYS.to_string();
    let mut exec = String::new();
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("no-stdin") => stdin = false,
            Long("detach-keys") => keys = text(parser.value()?)?,
            Long("exec") => exec = text(parser.value()?)?,
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, ATTACH)),
        }
    }
    let id = args::one_id(ids)?;
    let monitor = cx.monitor(&id)?;
    let keys = self::keys(&keys)?;
    let attached = match exec.as_str() {
        "" => monitor.attach(stdin).await?,
        exec => monitor.attach_exec(exec, stdin).await?,
    };
    let peer = Peer { monitor: monitor.clone(), exec: exec.clone() };
    let end = run(attached.stdio, peer, attached.terminal, stdin, keys).await?;
    if let Some(code) = left(&end) {
        return Ok(code);
    }
    let exit = match exec.as_str() {
        "" => wait(&cx, &id).await?,
        exec => monitor.wait_exec(exec, None).await?,
    };
    Ok(exit.status)
}

/// Waits for a container's end: from its shim, or from the record that a shim left.
pub(crate) async fn wait(cx: &Context, id: &str) -> Result<Exit> {
    let dir: PathBuf = cx.dir(id)?;
    match Monitor::at(&dir).wait(None).await {
        Ok(exit) => Ok(exit),
        Err(e @ (Error::NotRunning { .. } | Error::Disconnected { .. })) => {
            pintle_client::read_exit_record(&dir).ok_or_else(|| e.into())
        }
        Err(e) => Err(e.into()),
    }
}
