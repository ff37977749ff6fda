//! A container's life: run, create, start, stop, and all that changes it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lexopt::prelude::*;
use pintle_client::{CheckpointOptions, CreateOptions, Error, Exit, LogOptions, Monitor, RestoreOptions};
use pintle_core::detach::Detach;
use serde_json::{Value, json};

use crate::args::{self, one_id, text, unknown, usage};
use crate::bundle::{self, Resources};
use crate::context::{Context, absolute};
use crate::{output, session, terminal};

const RUN: &str = "\
usage: pintle run [options] --rootfs DIR [--] PROGRAM [ARGUMENT...]
       pintle run [options] --bundle DIR [ID]
       pintle create ... (the same options)
       pintle restore --image DIR [options] --bundle DIR [ID]

  -i, --interactive       pass on standard input
  -t, --tty               give the process a terminal
  -d, --detach            do not stay: print the id and return
      --rm                remove the container after its end, also when nobody stays with it
      --id ID             id of the container; default: a new one
  -b, --bundle DIR        OCI bundle; a directory with config.json
      --rootfs DIR        make the OCI configuration for this root file system
      --log LOG           where the output is logged: FILE, or k8s-file[:FILE], in CRI format;
                          json-file[:FILE], in Docker's format; journald; none.
                          default: k8s-file; without FILE it is in the state directory
      --log-max-size N    rotate the log file at this size; default: never
      --log-max-files N   rotated files to keep beside it; default 0: begin it anew, without history
      --pid-file FILE     file that gets the pid of the first process
      --detach-keys K     keys that leave the session; default ctrl-p,ctrl-q
      --image DIR         restore: directory of the checkpoint

without a terminal, signals are passed on; the third SIGINT leaves the container to itself (exit status 130)

with --rootfs:
  -e, --env NAME=VALUE    environment variable; NAME alone passes ours on
  -w, --cwd DIR           working directory
  -u, --user UID[:GID]    user
  -v, --mount SRC:DST[:ro]  bind mount
  -m, --memory N          memory limit, swap included
      --pids N            limit of processes
      --cpus N            limit of CPU time
      --hostname NAME     host name
      --read-only         the root file system is read-only
      --net host|none     network; default host
";

/// What `run`, `create` and `restore` read.
struct Making {
    id: String,
    create: CreateOptions,
    interactive: bool,
    detached: bool,
    remove: bool,
    keys: Detach,
    image: PathBuf,
}

/// Reads the arguments and, for `--rootfs`, makes the bundle.
fn read(cx: &Context, args: Vec<OsString>) -> Result<Making> {
    let mut spec = bundle::Options::default();
    let mut create = CreateOptions { runtime: cx.runtime.clone(), ..CreateOptions::default() };
    let (mut interactive, mut detached, mut remove) = (false, false, false);
    let (mut id, mut bundle, mut log, mut max_size, mut max_files) = (None, None, None, 0, 0);
    let mut keys = session::KEYS.to_string();
    let mut image = PathBuf::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('i') | Long("interactive") => interactive = true,
            Short('t') | Long("tty") => spec.terminal = true,
            Short('d') | Long("detach") => detached = true,
            Long("rm") => remove = true,
            Long("id" | "name") => id = Some(text(parser.value()?)?),
            Short('b') | Long("bundle") => bundle = Some(absolute(parser.value()?)?),
            Long("rootfs") => spec.rootfs = Some(absolute(parser.value()?)?),
            Long("log") => log = Some(parser.value()?),
            Long("log-max-size") => max_size = args::bytes(&text(parser.value()?)?)?,
            Long("log-max-files") => max_files = parser.value()?.parse::<u32>()?,
            Long("pid-file") => create.pid_file = Some(absolute(parser.value()?)?),
            Long("detach-keys") => keys = text(parser.value()?)?,
            Long("image") => image = absolute(parser.value()?)?,
            Short('e') | Long("env") => spec.env.push(text(parser.value()?)?),
            Short('w') | Long("cwd") => spec.cwd = Some(text(parser.value()?)?),
            Short('u') | Long("user") => spec.user = Some(text(parser.value()?)?),
            Short('v') | Long("mount") => spec.mounts.push(text(parser.value()?)?),
            Short('m') | Long("memory") => {
                spec.resources.memory = Some(args::bytes(&text(parser.value()?)?)?)
            }
            Long("pids") => spec.resources.pids = Some(parser.value()?.parse()?),
            Long("cpus") => spec.resources.cpus = Some(args::cpus(&text(parser.value()?)?)?),
            Long("hostname") => spec.hostname = Some(text(parser.value()?)?),
            Long("read-only") => spec.read_only = true,
            Long("net") => match text(parser.value()?)?.as_str() {
                "host" => spec.private_network = false,
                "none" => spec.private_network = true,
                other => return Err(usage(format!("{other} is not a network; there are host and none"))),
            },
            Value(v) if bundle.is_some() && id.is_none() => id = Some(text(v)?),
            Value(v) if bundle.is_none() => {
                spec.args.push(text(v)?);
                for rest in parser.raw_args()? {
                    spec.args.push(text(rest)?);
                }
            }
            other => return Err(unknown(other, RUN)),
        }
    }
    let id = id.unwrap_or_else(new_id);
    args::check_id(&id)?;
    let keys = session::keys(&keys)?;
    create.stdin = interactive;
    // A terminal is left with the detach keys and found again; a pipe ends with its writer.
    create.stdin_once = interactive && !detached && !spec.terminal;
    create.size = if spec.terminal { terminal::size() } else { None };
    let log = log_options(cx, &id, log.unwrap_or_else(|| "k8s-file".into()))?;
    if (max_size, max_files) != (0, 0) && log.as_ref().is_none_or(|l| l.path.as_os_str().is_empty()) {
        return Err(usage("there is no log file to rotate: --log-max-size and --log-max-files need one"));
    }
    create.logs.extend(log.map(|log| LogOptions { max_size, max_files, ..log }));
    if remove {
        create.exit_command = removal(cx, &id)?;
    }
    create.bundle = match (bundle, &spec.rootfs) {
        (Some(_), Some(_)) => return Err(usage("--bundle and --rootfs exclude each other")),
        (None, None) => return Err(usage("--rootfs or --bundle is missing")),
        (Some(dir), None) => dir,
        (None, Some(_)) => {
            spec.terminal &= image.as_os_str().is_empty();
            bundle::make(cx, &id, &spec)?
        }
    };
    Ok(Making { id, create, interactive, detached, remove, keys, image })
}

/// The log that `--log` asks for; None for none.
fn log_options(cx: &Context, id: &str, log: OsString) -> Result<Option<LogOptions>> {
    let own = || Ok::<_, anyhow::Error>(cx.dir(id)?.join("container.log"));
    let told = log.to_str().unwrap_or_default();
    let (driver, path) = match told.split_once(':').unwrap_or((told, "")) {
        ("none", "") => return Ok(None),
        ("journald", "") => {
            let driver = "journald".into();
            return Ok(Some(LogOptions { driver, name: id.to_owned(), ..LogOptions::default() }));
        }
        (driver @ ("k8s-file" | "json-file"), "") => (driver.to_owned(), own()?),
        (driver @ ("k8s-file" | "json-file"), path) => (driver.to_owned(), absolute(path.into())?),
        _ => ("k8s-file".to_owned(), absolute(log)?),
    };
    Ok(Some(LogOptions { driver, path, ..LogOptions::default() }))
}

/// What the shim runs after the end of a container that is to be removed: we may have left by then.
fn removal(cx: &Context, id: &str) -> Result<Vec<String>> {
    let program = std::env::current_exe().context("find the path of pintle for --rm")?;
    [program.as_os_str(), "--root".as_ref(), cx.root.as_os_str(), "rm".as_ref(), id.as_ref()]
        .iter()
        .map(|word| text(word.to_os_string()))
        .collect()
}

/// A new id: time and pid are enough, since an id in use is refused.
fn new_id() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("c{:x}{:x}", now.as_nanos() as u64 & 0xff_ffff_ffff, std::process::id())
}

/// Starts the shim and creates the container; a failure leaves nothing behind.
async fn make(cx: &Context, making: &Making, restore: Option<RestoreOptions>) -> Result<Monitor> {
    let monitor = match Monitor::spawn(cx.spawn(&making.id)).await {
        Ok(monitor) => monitor,
        Err(e) => {
            // Of a container that has this id already, nothing may be touched.
            if !cx.dir(&making.id)?.exists() {
                bundle::remove(cx, &making.id);
            }
            return Err(e.into());
        }
    };
    let made = match restore {
        None => monitor.create(&making.create).await,
        Some(options) => monitor.restore(&options).await,
    };
    if let Err(e) = made {
        discard(cx, &monitor, &making.id).await;
        return Err(e.into());
    }
    Ok(monitor)
}

/// Ends the shim of a container that did not come to be.
async fn discard(cx: &Context, monitor: &Monitor, id: &str) {
    let _ = monitor.delete(true).await;
    let _ = monitor.shutdown(true).await;
    gone(monitor).await;
    bundle::remove(cx, id);
}

/// Waits a moment for the shim's state directory to go away.
async fn gone(monitor: &Monitor) {
    for _ in 0..100 {
        if !monitor.dir().exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn create(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let making = read(&cx, args)?;
    make(&cx, &making, None).await?;
    output::line(&making.id)?;
    Ok(0)
}

pub(crate) async fn run(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let making = read(&cx, args)?;
    let monitor = make(&cx, &making, None).await?;
    let result = foreground(&cx, &making, &monitor).await;
    if result.is_err() && making.remove {
        discard(&cx, &monitor, &making.id).await;
    }
    result
}

async fn foreground(cx: &Context, making: &Making, monitor: &Monitor) -> Result<i32> {
    if making.detached {
        started(cx, making, monitor).await?;
        output::line(&making.id)?;
        return Ok(0);
    }
    // Before the start, so that not a byte is missed, nor the end of a container that is removed at once.
    let attached = monitor.attach(making.interactive).await?;
    let ending = {
        let (cx, id) = (cx.clone(), making.id.clone());
        tokio::spawn(async move { session::wait(&cx, &id).await })
    };
    tokio::task::yield_now().await;
    started(cx, making, monitor).await?;
    let peer = session::Peer { monitor: monitor.clone(), exec: String::new() };
    let end = session::run(attached.stdio, peer, attached.terminal, making.interactive, making.keys.clone())
        .await?;
    if let Some(code) = session::left(&end) {
        return Ok(code);
    }
    let exit = ending.await.context("wait for the end")??;
    if exit.oom_killed {
        eprintln!("pintle: {} was killed for want of memory", making.id);
    }
    if making.remove {
        removed(cx, monitor, &making.id).await?;
    }
    Ok(exit.status)
}

/// Returns when a container with `--rm` is gone: its exit command removes it, and we do if that one failed.
async fn removed(cx: &Context, monitor: &Monitor, id: &str) -> Result<()> {
    gone(monitor).await;
    if !monitor.dir().exists() {
        bundle::remove(cx, id);
        return Ok(());
    }
    match delete(cx, id, true).await {
        Err(_) if !monitor.dir().exists() => Ok(()),
        other => other,
    }
}

/// Starts the container; one that does not start is not left behind.
async fn started(cx: &Context, making: &Making, monitor: &Monitor) -> Result<()> {
    if let Err(e) = monitor.start().await {
        discard(cx, monitor, &making.id).await;
        return Err(e.into());
    }
    Ok(())
}

pub(crate) async fn restore(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let making = read(&cx, args)?;
    if making.image.as_os_str().is_empty() {
        return Err(usage("--image is missing"));
    }
    let options = RestoreOptions {
        create: making.create.clone(),
        image_path: making.image.clone(),
        ..RestoreOptions::default()
    };
    make(&cx, &making, Some(options)).await?;
    output::line(&making.id)?;
    Ok(0)
}

const START: &str = "\
usage: pintle start [options] ID...

  -a, --attach          stay with the container and end as it ends
  -i, --interactive     pass on standard input, with -a
      --detach-keys K   keys that leave the session; default ctrl-p,ctrl-q
";

pub(crate) async fn start(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let (mut attach, mut stdin) = (false, false);
    let mut keys = session::KEYS.to_string();
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('a') | Long("attach") => attach = true,
            Short('i') | Long("interactive") => stdin = true,
            Long("detach-keys") => keys = text(parser.value()?)?,
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, START)),
        }
    }
    if !attach {
        return each(ids, async |id: &str| {
            cx.monitor(id)?.start().await?;
            output::line(id)
        })
        .await;
    }
    output::set_foreground(true);
    let id = one_id(ids)?;
    let keys = session::keys(&keys)?;
    let monitor = cx.monitor(&id)?;
    let attached = monitor.attach(stdin).await?;
    monitor.start().await?;
    let peer = session::Peer { monitor: monitor.clone(), exec: String::new() };
    let end = session::run(attached.stdio, peer, attached.terminal, stdin, keys).await?;
    if let Some(code) = session::left(&end) {
        return Ok(code);
    }
    Ok(session::wait(&cx, &id).await?.status)
}

/// Does the same with each id; a failure is reported and does not keep the others from their turn.
async fn each(ids: Vec<String>, mut act: impl AsyncFnMut(&str) -> Result<()>) -> Result<i32> {
    if ids.is_empty() {
        return Err(usage("the id of a container is missing"));
    }
    let mut code = 0;
    for id in &ids {
        if let Err(e) = act(id).await {
            code = code.max(output::report(&e.context(id.clone())));
        }
    }
    Ok(code)
}

/// Reads a command that has nothing but ids.
fn only_ids(args: Vec<OsString>, help: &'static str) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, help)),
        }
    }
    Ok(ids)
}

/// Commands that take ids and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Simple {
    Pause,
    Resume,
    ReopenLog,
}

pub(crate) async fn simple(cx: Context, args: Vec<OsString>, what: Simple) -> Result<i32> {
    let help = match what {
        Simple::Pause => "usage: pintle pause ID...\n",
        Simple::Resume => "usage: pintle resume ID...\n",
        Simple::ReopenLog => "usage: pintle reopen-log ID...\n       pintle reopen-log --all\n",
    };
    let mut args = args;
    let mut ids = Vec::new();
    if what == Simple::ReopenLog && args.iter().any(|a| a == "--all") {
        args.retain(|a| a != "--all");
        ids = pintle_client::scan(&cx.root)?.into_iter().filter(|e| e.alive).map(|e| e.id).collect();
        if ids.is_empty() {
            return Ok(0);
        }
    }
    ids.extend(only_ids(args, help)?);
    each(ids, async |id: &str| {
        let monitor = cx.monitor(id)?;
        match what {
            Simple::Pause => monitor.pause().await?,
            Simple::Resume => monitor.resume().await?,
            Simple::ReopenLog => {
                monitor.reopen_log().await?;
            }
        }
        output::line(id)
    })
    .await
}

const WAIT: &str = "\
usage: pintle wait ID...

prints the exit code of each (128 + signal if a signal ended it); --json: all that is known about the end
";

pub(crate) async fn wait(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let ids = only_ids(args, WAIT)?;
    each(ids, async |id: &str| print_exit(&cx, id, &session::wait(&cx, id).await?)).await
}

fn print_exit(cx: &Context, id: &str, exit: &Exit) -> Result<()> {
    if !cx.json {
        return output::line(exit.status);
    }
    let mut document = output::exit_json(exit);
    document["id"] = id.into();
    output::print_json(&document)
}

const STOP: &str = "\
usage: pintle stop [options] ID...

  -t, --time TIME      time until SIGKILL; default 10
  -s, --signal SIGNAL  stop signal; default TERM
";

pub(crate) async fn stop(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let (mut time, mut signal) = (Duration::from_secs(10), None);
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('t') | Long("time" | "timeout") => time = args::duration(&text(parser.value()?)?)?,
            Short('s') | Long("signal") => signal = Some(args::signal(&text(parser.value()?)?)?),
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, STOP)),
        }
    }
    each(ids, async |id: &str| {
        cx.monitor(id)?.stop(signal, time).await?;
        output::line(id)
    })
    .await
}

const KILL: &str = "\
usage: pintle kill [options] ID...

  -s, --signal SIGNAL  default KILL
  -a, --all            every process of the container
      --exec EXEC      the process of this exec
";

pub(crate) async fn kill(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let (mut signal, mut all, mut exec) = (9, false, None);
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('s') | Long("signal") => signal = args::signal(&text(parser.value()?)?)?,
            Short('a') | Long("all") => all = true,
            Long("exec") => exec = Some(text(parser.value()?)?),
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, KILL)),
        }
    }
    each(ids, async |id: &str| {
        let monitor = cx.monitor(id)?;
        match &exec {
            Some(exec) => monitor.kill_exec(exec, signal).await?,
            None => monitor.kill(signal, all).await?,
        }
        output::line(id)
    })
    .await
}

const UPDATE: &str = "\
usage: pintle update [options] ID...

  -m, --memory N        memory limit, swap included
      --pids N          limit of processes
      --cpus N          limit of CPU time
  -r, --resources FILE  linux.resources of the OCI specification as JSON; -: standard input
";

pub(crate) async fn update(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let mut resources = Resources::default();
    let mut json = None;
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('m') | Long("memory") => resources.memory = Some(args::bytes(&text(parser.value()?)?)?),
            Long("pids") => resources.pids = Some(parser.value()?.parse()?),
            Long("cpus") => resources.cpus = Some(args::cpus(&text(parser.value()?)?)?),
            Short('r') | Long("resources") => {
                let path = parser.value()?;
                let read = if path == "-" {
                    std::io::read_to_string(std::io::stdin())
                } else {
                    std::fs::read_to_string(&path)
                };
                json = Some(read.with_context(|| format!("read {}", path.to_string_lossy()))?);
            }
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, UPDATE)),
        }
    }
    let json = match json {
        Some(json) => json,
        None if resources == Resources::default() => return Err(usage("no limit is given")),
        None => resources.json().to_string(),
    };
    each(ids, async |id: &str| {
        cx.monitor(id)?.update(&json).await?;
        output::line(id)
    })
    .await
}

const CHECKPOINT: &str = "\
usage: pintle checkpoint --image DIR [options] ID

      --image DIR         directory of the checkpoint
      --work DIR          working directory of CRIU
  -R, --leave-running     do not stop the container
      --tcp-established   save open TCP connections
      --file-locks        save file locks
      --ext-unix-sk       save connected Unix sockets
      --shell-job         save shell jobs
      --parent DIR        earlier checkpoint, relative to the image directory
      --pre-dump          only save memory ahead of the real checkpoint
";

pub(crate) async fn checkpoint(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let mut options = CheckpointOptions::default();
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("image") => options.image_path = absolute(parser.value()?)?,
            Long("work") => options.work_path = absolute(parser.value()?)?,
            Short('R') | Long("leave-running") => options.leave_running = true,
            Long("tcp-established") => options.tcp_established = true,
            Long("file-locks") => options.file_locks = true,
            Long("ext-unix-sk") => options.ext_unix_sk = true,
            Long("shell-job") => options.shell_job = true,
            Long("parent") => options.parent_path = parser.value()?.into(),
            Long("pre-dump") => options.pre_dump = true,
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, CHECKPOINT)),
        }
    }
    let id = one_id(ids)?;
    if options.image_path.as_os_str().is_empty() {
        return Err(usage("--image is missing"));
    }
    cx.monitor(&id)?.checkpoint(&options).await?;
    output::line(id)?;
    Ok(0)
}

const UPGRADE: &str = "\
usage: pintle upgrade [--all] [ID...]

replaces the running shim by another executable (--shim before the command; default: the shim's own
path, where a package manager has put the new one), in place: same pid, nothing lost
";

pub(crate) async fn upgrade(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let mut args = args;
    let all = args.iter().any(|a| a == "--all");
    args.retain(|a| a != "--all");
    let mut ids = only_ids(args, UPGRADE)?;
    if all {
        ids.extend(pintle_client::scan(&cx.root)?.into_iter().filter(|e| e.alive).map(|e| e.id));
        if ids.is_empty() {
            return Ok(0);
        }
    }
    let given = std::env::args().any(|a| a == "--shim" || a.starts_with("--shim="));
    let shim = if given { Some(std::path::absolute(&cx.shim)?) } else { None };
    each(ids, async |id: &str| {
        let monitor = cx.monitor(id)?;
        let old = monitor.upgrade(shim.as_deref()).await?;
        let new = monitor.info().await?.version;
        if cx.json {
            output::print_json(&json!({"id": id, "old": old, "new": new}))
        } else {
            output::line(format!("{id}: {old} -> {new}"))
        }
    })
    .await
}

const ADOPT: &str = "\
usage: pintle adopt ID...

starts a new shim for a container whose shim was lost (killed); the container runs on
";

pub(crate) async fn adopt(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let ids = only_ids(args, ADOPT)?;
    each(ids, async |id: &str| {
        let dir = cx.dir(id)?;
        if !dir.join("state.json").exists() {
            bail!("no container {id}");
        }
        if pintle_client::has_shim(&dir) {
            bail!("the shim of {id} lives");
        }
        let mut config = cx.spawn(id);
        config.args.push("--adopt".into());
        Monitor::spawn(config).await?;
        output::line(id)
    })
    .await
}

const RM: &str = "\
usage: pintle rm [-f] ID...

  -f, --force  kill the container first if it lives
";

pub(crate) async fn rm(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let mut force = false;
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("force") => force = true,
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, RM)),
        }
    }
    each(ids, async |id: &str| {
        delete(&cx, id, force).await?;
        output::line(id)
    })
    .await
}

/// Removes a container: through its shim, or what a lost shim left.
async fn delete(cx: &Context, id: &str, force: bool) -> Result<()> {
    let dir = cx.dir(id)?;
    let monitor = Monitor::at(&dir);
    match monitor.delete(force).await {
        Ok(_) => {
            gone(&monitor).await;
            bundle::remove(cx, id);
            return Ok(());
        }
        Err(Error::NotRunning { .. } | Error::Disconnected { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    if !dir.exists() {
        if bundle::place(cx, id).exists() {
            bundle::remove(cx, id);
            return Ok(());
        }
        bail!("no container {id}");
    }
    if pintle_client::has_shim(&dir) {
        bail!("the shim of {id} is being replaced; try again");
    }
    if pintle_client::read_exit_record(&dir).is_none() && !force {
        bail!(
            "the shim of {id} was lost and the container may live: pintle adopt {id}, or pintle rm -f {id}"
        );
    }
    let document = std::fs::read(dir.join("state.json")).unwrap_or_default();
    let document = serde_json::from_slice::<Value>(&document).unwrap_or_default();
    let [program, args @ ..] = &runtime_of(cx, &document)[..] else { bail!("no runtime for {id}") };
    // The runtime may know nothing of it any more; what counts is that it is gone afterwards.
    let _ = Command::new(program).args(args).args(["delete", "--force", id]).output();
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    bundle::remove(cx, id);
    Ok(())
}

/// The runtime that made a container whose shim is lost, and its global arguments: as the shim wrote them down, unless
/// the user names others.
fn runtime_of(cx: &Context, document: &Value) -> Vec<OsString> {
    let told = &document["spec"]["runtime"];
    let pick = |own: &Path, key: &str| match own.as_os_str().is_empty() {
        true => told[key].as_str().unwrap_or_default().into(),
        false => own.as_os_str().to_owned(),
    };
    let program = pick(&cx.runtime.path, "path");
    let mut words = vec![if program.is_empty() { "runc".into() } else { program }];
    let extra = told["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    words.extend(extra.map(OsString::from));
    let root = pick(&cx.runtime.root, "root");
    if !root.is_empty() {
        words.extend(["--root".into(), root]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_asked_for_by_driver_or_file() {
        let (cx, _, _) = crate::context::parse(vec!["run".into()]).unwrap().unwrap();
        let own = cx.dir("web").unwrap().join("container.log");
        let log = |text: &str| log_options(&cx, "web", text.into()).unwrap();
        for (text, driver, path) in [
            ("k8s-file", "k8s-file", own.as_path()),
            ("json-file", "json-file", own.as_path()),
            ("json-file:/a:b", "json-file", Path::new("/a:b")),
            ("k8s-file:/a", "k8s-file", Path::new("/a")),
            ("/a/json-file", "k8s-file", Path::new("/a/json-file")),
            ("/a:b", "k8s-file", Path::new("/a:b")),
            ("journald", "journald", Path::new("")),
        ] {
            let log = log(text).unwrap();
            assert_eq!((log.driver.as_str(), log.path.as_path()), (driver, path), "{text}");
        }
        assert_eq!(log("none"), None);
    }

    #[test]
    fn a_lost_container_is_removed_with_the_runtime_that_made_it() {
        let (mut cx, _, _) = crate::context::parse(vec!["rm".into()]).unwrap().unwrap();
        let told = json!({"spec": {"runtime": {"path": "crun", "root": "/r", "args": ["--debug"]}}});
        assert_eq!(runtime_of(&cx, &told), ["crun", "--debug", "--root", "/r"]);
        assert_eq!(runtime_of(&cx, &Value::Null), ["runc"]);
        cx.runtime.path = "youki".into();
        assert_eq!(runtime_of(&cx, &told), ["youki", "--debug", "--root", "/r"]);
    }
}
