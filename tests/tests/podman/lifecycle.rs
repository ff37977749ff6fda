//! Running, stopping, waiting, restarting.

use std::io::Read as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_tests::scaled;

use crate::world::{IMAGE, World, until, wait};
use crate::{Scenario, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("run_exit_codes", run_exit_codes),
    scenario("run_killed_by_signal", run_killed_by_signal),
    scenario("run_missing_command", run_missing_command),
    scenario("run_not_executable", run_not_executable),
    scenario("run_missing_workdir", run_missing_workdir),
    scenario("run_detached", run_detached),
    scenario("create_start_attach", create_start_attach),
    scenario("wait_for_exit", wait_for_exit),
    scenario("stop_graceful", stop_graceful),
    scenario("stop_by_timeout", stop_by_timeout),
    scenario("run_timeout", run_timeout),
    scenario("kill_default", kill_default),
    scenario("kill_user_signal", kill_user_signal),
    scenario("sig_proxy", sig_proxy),
    scenario("restart", restart),
    scenario("restart_policy", restart_policy),
    scenario("pause_unpause", pause_unpause),
    scenario("remove_running", remove_running),
    scenario("exec_codes", exec_codes),
    scenario("exec_missing_command", exec_missing_command),
    scenario("exec_not_executable", exec_not_executable),
    scenario("exec_killed_by_signal", exec_killed_by_signal),
    scenario("exec_user_env_workdir", exec_user_env_workdir),
    scenario("exec_detached", exec_detached),
    scenario("exec_in_stopped", exec_in_stopped),
    scenario("exec_outlived_by_nothing", exec_outlived_by_nothing),
    scenario("exec_parallel", exec_parallel),
    scenario("run_parallel", run_parallel),
    scenario("auto_remove", auto_remove),
];

fn run_exit_codes(world: &World) -> Result<()> {
    for code in [0, 1, 42, 255] {
        world.code(code, &["run", "--rm", IMAGE, "sh", "-c", &format!("exit {code}")])?;
    }
    Ok(())
}

fn run_killed_by_signal(world: &World) -> Result<()> {
    // PID 1 cannot kill itself by a signal without a handler, so its child does it from outside the namespace.
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        let name = world.detached("sig", &["--init"], "exec sleep 1000")?;
        world.ok(&["kill", "-s", signal, &name])?;
        ensure!(world.ok(&["wait", &name])? == code.to_string(), "{signal}");
        world.remove(&name)?;
    }
    Ok(())
}

fn run_missing_command(world: &World) -> Result<()> {
    let done = world.code(127, &["run", "--rm", IMAGE, "/no/such/command"])?;
    ensure!(done.err().contains("no such file"), "{}", done.err());
    Ok(())
}

fn run_not_executable(world: &World) -> Result<()> {
    world.code(126, &["run", "--rm", IMAGE, "/etc/passwd"]).map(drop)
}

fn run_missing_workdir(world: &World) -> Result<()> {
    let done = world.any(&["run", "--rm", "-w", "/no/such/dir", IMAGE, "true"])?;
    ensure!(done.code() == 126 || done.code() == 127, "{} {}", done.status, done.err());
    Ok(())
}

fn run_detached(world: &World) -> Result<()> {
    let name = world.detached("det", &[], "echo started; exec sleep 1000")?;
    world.logged(&name, "started")?;
    ensure!(world.field(&name, ".State.Running")? == "true");
    ensure!(world.ok(&["ps", "-q", "--filter", &format!("name={name}")])?.len() == 12);
    world.remove(&name)
}

fn create_start_attach(world: &World) -> Result<()> {
    let name = world.id("csa");
    world.ok(&["create", "--name", &name, IMAGE, "sh", "-c", "echo out; echo err >&2; exit 9"])?;
    let done = world.code(9, &["start", "-a", &name])?;
    ensure!(done.out() == "out" && done.err() == "err", "{done:?}");
    let again = world.code(9, &["start", "-a", &name])?;
    ensure!(again.out() == "out", "{again:?}");
    world.remove(&name)
}

fn wait_for_exit(world: &World) -> Result<()> {
    let name = world.detached("wait", &[], "sleep 0.5; exit 11")?;
    ensure!(world.ok(&["wait", &name])? == "11");
    ensure!(world.field(&name, ".State.ExitCode")? == "11");
    world.remove(&name)
}

fn stop_graceful(world: &World) -> Result<()> {
    let name = world.detached(
        "stop",
        &[],
        "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done",
    )?;
    world.logged(&name, "ready")?;
    world.ok(&["stop", "-t", "30", &name])?;
    ensure!(world.ok(&["wait", &name])? == "5");
    world.logged(&name, "bye")?;
    world.remove(&name)
}

fn stop_by_timeout(world: &World) -> Result<()> {
    let name = world.detached("stopt", &[], "trap '' TERM; echo ready; while :; do sleep 0.1; done")?;
    world.logged(&name, "ready")?;
    world.ok(&["stop", "-t", "1", &name])?;
    ensure!(world.ok(&["wait", &name])? == "137");
    world.remove(&name)
}

fn run_timeout(world: &World) -> Result<()> {
    let name = world.id("rto");
    let done = world.any(&["run", "--timeout", "3", "--name", &name, IMAGE, "sleep", "1000"])?;
    ensure!(!done.status.success(), "{done:?}");
    ensure!(world.field(&name, ".State.Status")? == "exited");
    world.remove(&name)
}

fn kill_default(world: &World) -> Result<()> {
    let name = world.detached("kill", &[], "exec sleep 1000")?;
    world.ok(&["kill", &name])?;
    ensure!(world.ok(&["wait", &name])? == "137");
    world.remove(&name)
}

fn kill_user_signal(world: &World) -> Result<()> {
    let name = world.detached(
        "usr1",
        &[],
        "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.1; done",
    )?;
    world.logged(&name, "ready")?;
    world.ok(&["kill", "-s", "USR1", &name])?;
    ensure!(world.ok(&["wait", &name])? == "3");
    world.logged(&name, "got")?;
    world.remove(&name)
}

fn sig_proxy(world: &World) -> Result<()> {
    let name = world.id("proxy");
    let script = "trap 'echo got; exit 6' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = world.podman(&["run", "--name", &name, IMAGE, "sh", "-c", script]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    until("the container", || Ok(world.any(&["logs", &name])?.out().contains("ready")))?;
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGTERM)?;
    let status = wait(&mut child)?;
    ensure!(status.code() == Some(6), "{status}");
    world.remove(&name)
}

fn restart(world: &World) -> Result<()> {
    let name = world.detached("rest", &[], "echo run; exec sleep 1000")?;
    world.logged(&name, "run")?;
    world.ok(&["restart", "-t", "0", &name])?;
    until("the second run", || Ok(world.ok(&["logs", &name])?.matches("run").count() == 2))?;
    ensure!(world.field(&name, ".State.Running")? == "true");
    world.remove(&name)
}

fn restart_policy(world: &World) -> Result<()> {
    let name = world.detached("pol", &["--restart", "on-failure:2"], "echo run; exit 4")?;
    until("two restarts", || Ok(world.field(&name, ".RestartCount")? == "2"))?;
    until("the last end", || Ok(world.field(&name, ".State.Status")? == "exited"))?;
    ensure!(world.field(&name, ".State.ExitCode")? == "4");
    ensure!(world.ok(&["logs", &name])?.matches("run").count() == 3);
    world.remove(&name)
}

fn pause_unpause(world: &World) -> Result<()> {
    let name = world.detached("pause", &[], "exec sleep 1000")?;
    world.ok(&["pause", &name])?;
    ensure!(world.field(&name, ".State.Status")? == "paused");
    world.ok(&["unpause", &name])?;
    ensure!(world.field(&name, ".State.Status")? == "running");
    world.remove(&name)
}

fn remove_running(world: &World) -> Result<()> {
    let name = world.detached("rmf", &[], "exec sleep 1000")?;
    let conmon: i32 = world.field(&name, ".State.ConmonPid")?.parse()?;
    world.remove(&name)?;
    until("the monitor's end", || Ok(kill(Pid::from_raw(conmon), None).is_err()))?;
    world.code(1, &["container", "exists", &name]).map(drop)
}

fn exec_codes(world: &World) -> Result<()> {
    let name = world.detached("exc", &[], "exec sleep 1000")?;
    for code in [0, 3, 255] {
        world.code(code, &["exec", &name, "sh", "-c", &format!("exit {code}")])?;
    }
    let done = world.code(0, &["exec", &name, "sh", "-c", "echo out; echo err >&2"])?;
    ensure!(done.out() == "out" && done.err() == "err", "{done:?}");
    world.remove(&name)
}

fn exec_missing_command(world: &World) -> Result<()> {
    let name = world.detached("exm", &[], "exec sleep 1000")?;
    let done = world.code(127, &["exec", &name, "/no/such/command"])?;
    ensure!(done.err().contains("no such file"), "{}", done.err());
    world.remove(&name)
}

fn exec_not_executable(world: &World) -> Result<()> {
    let name = world.detached("exn", &[], "exec sleep 1000")?;
    world.code(126, &["exec", &name, "/etc/passwd"])?;
    world.remove(&name)
}

fn exec_killed_by_signal(world: &World) -> Result<()> {
    let name = world.detached("exk", &[], "exec sleep 1000")?;
    world.code(137, &["exec", &name, "sh", "-c", "kill -9 $$"])?;
    world.code(143, &["exec", &name, "sh", "-c", "kill -15 $$"])?;
    world.remove(&name)
}

fn exec_user_env_workdir(world: &World) -> Result<()> {
    let name = world.detached("exu", &[], "exec sleep 1000")?;
    let script = "id -u; echo $WORD; pwd";
    let out =
        world.ok(&["exec", "-u", "user", "-e", "WORD=hello", "-w", "/tmp", &name, "sh", "-c", script])?;
    ensure!(out == "1000\nhello\n/tmp", "{out}");
    // A user that is not root may open the stream anew.
    let out = world.ok(&["exec", "-u", "user", &name, "sh", "-c", "echo anew >/dev/stdout"])?;
    ensure!(out == "anew", "{out}");
    world.remove(&name)
}

fn exec_detached(world: &World) -> Result<()> {
    let name = world.detached("exd", &[], "exec sleep 1000")?;
    world.ok(&["exec", "-d", &name, "sh", "-c", "echo done >/tmp/mark; exec sleep 1000"])?;
    until("the detached exec", || Ok(world.any(&["exec", &name, "cat", "/tmp/mark"])?.out() == "done"))?;
    world.remove(&name)
}

fn exec_in_stopped(world: &World) -> Result<()> {
    let name = world.detached("exs", &[], "exit 0")?;
    world.ok(&["wait", &name])?;
    let done = world.any(&["exec", &name, "true"])?;
    ensure!(done.code() == 255, "{done:?}");
    world.remove(&name)
}

fn exec_outlived_by_nothing(world: &World) -> Result<()> {
    let name = world.detached("exo", &[], "exec sleep 1000")?;
    world.code(4, &["exec", &name, "sh", "-c", "sleep 3 & exit 4"])?;
    world.remove(&name)
}

fn exec_parallel(world: &World) -> Result<()> {
    let name = world.detached("exp", &[], "exec sleep 1000")?;
    parallel(world, 20, &["exec", &name])?;
    world.remove(&name)
}

fn run_parallel(world: &World) -> Result<()> {
    parallel(world, scaled(6, 20), &["run", "--rm", IMAGE])
}

/// Runs that many commands at once; each must have its own code and its own output.
fn parallel(world: &World, count: usize, args: &[&str]) -> Result<()> {
    let mut children = Vec::new();
    for number in 1..=count {
        let script = format!("sleep 0.2; echo {number}; exit {number}");
        let mut command = world.podman(&[args, &["sh", "-c", &script]].concat());
        children.push(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    }
    for (child, number) in children.iter_mut().zip(1..) {
        let status = wait(child)?;
        ensure!(status.code() == Some(number), "{args:?} {number}: {status}");
        let mut text = String::new();
        child.stdout.take().context("a pipe")?.read_to_string(&mut text)?;
        ensure!(text == format!("{number}\n"), "{args:?} {number}: {text:?}");
    }
    Ok(())
}

fn auto_remove(world: &World) -> Result<()> {
    let name = world.detached("auto", &["--rm"], "sleep 0.3")?;
    // Only the exit command can do this: nobody waits for the container.
    until("the container to be removed", || Ok(world.any(&["container", "exists", &name])?.code() == 1))?;
    Ok(())
}
