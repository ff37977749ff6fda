//! `pintle`: containers under pintle shims, for people and scripts.
//!
//! This file chooses the command; each group of commands is a module. What the shim can do is asked of
//! the shim (`pintle-client`): there is no state here and no policy beyond printing.

mod args;
mod bundle;
mod context;
mod inspect;
mod life;
mod logs;
mod output;
mod session;
mod signal;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::context::Context;

const HELP: &str = "\
usage: pintle [options] COMMAND [arguments]

  run         create and start a container, and stay with it unless -d
  create      create a container
  start       start a created container
  exec        run one more process in a container
  attach      connect the terminal to a container
  logs        show what a container wrote
  ps          list containers
  inspect     all that is known about a container, as JSON
  stats       resource usage
  events      what happened to a container
  wait        wait for a container's end and print its exit code
  stop        stop signal, then SIGKILL after a time
  kill        send a signal
  pause       freeze all processes
  resume      thaw all processes
  update      change resource limits
  reopen-log  open the log files anew, after they were renamed
  checkpoint  save the processes of a container to disk (CRIU)
  restore     a container from a checkpoint
  upgrade     replace the running shim by another executable, in place
  adopt       a new shim for a container whose shim was lost
  rm          remove a container
  version     print the version

options:
  --root DIR          directory of the state directories; default $PINTLE_DIR or /run/pintle
  --runtime PATH      OCI runtime; default runc
  --runtime-root DIR  state directory of the runtime
  --systemd-cgroup    let the runtime ask systemd for cgroups
  --shim PATH         executable of the shim; default pintle-shim beside pintle, or in PATH
  --json              print JSON where there is something to print
  -h, --help          this text; pintle COMMAND --help for a command

exit status of run, start -a, exec and attach: that of the process (128 + signal if a signal ended it);
124: exec timed out; 125: pintle failed; 126, 127: the program could not be run, was not found;
of other commands: 1 if they failed, 2 if they were called wrongly
";

fn main() -> ExitCode {
    terminal::restore_on_panic();
    let result = run(std::env::args_os().skip(1).collect());
    terminal::restore();
    let code = match result {
        Ok(code) => code,
        Err(e) => output::report(&e),
    };
    // Threads that read standard input would hold an ordinary return.
    std::process::exit(code);
}

fn run(args: Vec<OsString>) -> Result<i32> {
    let Some((context, command, rest)) = context::parse(args)? else {
        output::print(HELP)?;
        return Ok(0);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(dispatch(context, &command, rest));
    runtime.shutdown_background();
    code
}

async fn dispatch(cx: Context, command: &str, args: Vec<OsString>) -> Result<i32> {
    output::command(command);
    match command {
        "run" => life::run(cx, args).await,
        "create" => life::create(cx, args).await,
        "start" => life::start(cx, args).await,
        "restore" => life::restore(cx, args).await,
        "exec" => session::exec(cx, args).await,
        "attach" => session::attach(cx, args).await,
        "logs" => logs::logs(cx, args).await,
        "ps" | "list" => inspect::ps(cx, args).await,
        "inspect" => inspect::inspect(cx, args).await,
        "stats" => inspect::stats(cx, args).await,
        "events" => inspect::events(cx, args).await,
        "wait" => life::wait(cx, args).await,
        "stop" => life::stop(cx, args).await,
        "kill" => life::kill(cx, args).await,
        "pause" => life::simple(cx, args, life::Simple::Pause).await,
        "resume" | "unpause" => life::simple(cx, args, life::Simple::Resume).await,
        "reopen-log" => life::simple(cx, args, life::Simple::ReopenLog).await,
        "upgrade" => life::upgrade(cx, args).await,
        "adopt" => life::adopt(cx, args).await,
        "update" => life::update(cx, args).await,
        "checkpoint" => life::checkpoint(cx, args).await,
        "rm" | "delete" => life::rm(cx, args).await,
        "version" => {
            if let Some(arg) = lexopt::Parser::from_args(args).next()? {
                return Err(args::unknown(arg, "usage: pintle version\n"));
            }
            output::print(concat!("pintle ", env!("CARGO_PKG_VERSION"), "\n"))?;
            Ok(0)
        }
        other => Err(args::usage(format!("unknown command {other}; pintle --help lists the commands"))),
    }
}
