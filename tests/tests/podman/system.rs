//! What surrounds a container: cgroups, service managers, pods, the monitor itself.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::world::{IMAGE, World, until};
use crate::{Scenario, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("oom", oom),
    scenario("healthcheck", healthcheck),
    scenario("sdnotify_conmon", sdnotify_conmon),
    scenario("sdnotify_container", sdnotify_container),
    scenario("pods", pods),
    scenario("init", init),
    scenario("orphan_holds_stdout", orphan_holds_stdout),
    scenario("conmon_pidfile", conmon_pidfile),
    scenario("podman_info", podman_info),
    scenario("monitor_name", monitor_name),
    scenario("umask", umask),
    scenario("events", events),
    scenario("output_of_a_failed_start", output_of_a_failed_start),
];

fn oom(world: &World) -> Result<()> {
    let name = world.id("oom");
    let hungry = "x=abcdefgh; while :; do x=$x$x; done";
    let args = ["run", "--name", &name, "--memory", "20m", "--memory-swap", "20m", IMAGE, "sh", "-c", hungry];
    world.code(137, &args)?;
    ensure!(world.field(&name, ".State.OOMKilled")? == "true");
    world.remove(&name)
}

fn healthcheck(world: &World) -> Result<()> {
    let options =
        ["--health-cmd", "test -e /tmp/healthy", "--health-interval", "disable", "--health-retries", "1"];
    let name = world.detached("hc", &options, "exec sleep 1000")?;
    ensure!(world.any(&["healthcheck", "run", &name])?.code() == 1);
    world.ok(&["exec", &name, "touch", "/tmp/healthy"])?;
    ensure!(world.any(&["healthcheck", "run", &name])?.code() == 0);
    world.remove(&name)
}

/// A service manager that listens.
fn manager(world: &World) -> Result<(UnixDatagram, std::path::PathBuf)> {
    let path = world.path("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok((socket, path))
}

fn receive(socket: &UnixDatagram) -> Result<String> {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).context("no notification")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn sdnotify_conmon(world: &World) -> Result<()> {
    let (socket, path) = manager(world)?;
    let name = world.id("snc");
    let mut command =
        world.podman(&["run", "-d", "--sdnotify", "conmon", "--name", &name, IMAGE, "sleep", "1000"]);
    command.env("NOTIFY_SOCKET", &path);
    let done = world.finish(command, b"")?;
    ensure!(done.status.success(), "{done:?}");
    let pid = world.field(&name, ".State.ConmonPid")?;
    let mut told = String::new();
    while !(told.contains(&format!("MAINPID={pid}")) && told.contains("READY=1")) {
        told += &receive(&socket)?;
    }
    world.remove(&name)
}

fn sdnotify_container(world: &World) -> Result<()> {
    let (socket, path) = manager(world)?;
    let name = world.id("snk");
    // busybox has no client for datagram sockets; the host's perl has.
    let script = r#"use Socket; socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die $!;
        my $to = sockaddr_un($ENV{NOTIFY_SOCKET});
        for my $m ("FDSTORE=1", "STATUS=starting\nMAINPID=1", "READY=1\nSTATUS=up") { send($s, $m, 0, $to) or die $!; }
        sleep 1000;"#;
    let args = [
        "run",
        "-d",
        "--sdnotify",
        "container",
        "--name",
        &name,
        "-v",
        "/usr:/usr:ro",
        "-v",
        "/lib:/lib:ro",
        "-v",
        "/lib64:/lib64:ro",
        IMAGE,
        "/usr/bin/perl",
        "-e",
        script,
    ];
    let mut command = world.podman(&args);
    command.env("NOTIFY_SOCKET", &path);
    let done = world.finish(command, b"")?;
    ensure!(done.status.success(), "{done:?}");
    let mut told = Vec::new();
    while !told.iter().any(|message: &String| message.contains("READY=1")) {
        told.push(receive(&socket)?);
    }
    ensure!(!told.iter().any(|message| message.contains("FDSTORE") || message == "MAINPID=1"), "{told:?}");
    world.remove(&name)
}

fn pods(world: &World) -> Result<()> {
    let pod = world.id("pod");
    // The pause image would have to be built; the infra container is not what is tested here.
    world.ok(&["pod", "create", "--infra=false", "--name", &pod])?;
    let first = world.detached(
        "pod1",
        &["--pod", &pod],
        "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done",
    )?;
    let second = world.detached(
        "pod2",
        &["--pod", &pod],
        "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done",
    )?;
    world.logged(&first, "up")?;
    world.logged(&second, "up")?;
    world.ok(&["pod", "stop", "-t", "10", &pod])?;
    ensure!(world.field(&first, ".State.Status")? == "exited");
    ensure!(world.field(&second, ".State.Status")? == "exited");
    world.ok(&["pod", "start", &pod])?;
    ensure!(world.field(&first, ".State.Status")? == "running");
    world.ok(&["pod", "rm", "-f", "-t", "0", &pod]).map(drop)
}

fn init(world: &World) -> Result<()> {
    world.code(23, &["run", "--rm", "--init", IMAGE, "sh", "-c", "exit 23"])?;
    let out = world.ok(&["run", "--rm", "--init", IMAGE, "cat", "/proc/1/comm"])?;
    ensure!(out.contains("init") || out.contains("catatonit"), "{out}");
    Ok(())
}

fn orphan_holds_stdout(world: &World) -> Result<()> {
    let name = world.id("orph");
    let args = ["run", "--pid", "host", "--name", &name, IMAGE, "sh", "-c", "echo before; sleep 4 & exit 3"];
    let done = world.code(3, &args)?;
    ensure!(done.out() == "before", "{done:?}");
    world.remove(&name)
}

fn conmon_pidfile(world: &World) -> Result<()> {
    let path = world.path("pidfile");
    let option = path.display().to_string();
    let name = world.detached("cpf", &["--conmon-pidfile", &option], "exec sleep 1000")?;
    let pid = std::fs::read_to_string(&path)?;
    ensure!(pid == world.field(&name, ".State.ConmonPid")?, "{pid:?}");
    world.remove(&name)
}

fn podman_info(world: &World) -> Result<()> {
    let version = world.ok(&["info", "--format", "{{.Host.Conmon.Version}}"])?;
    ensure!(version.starts_with("conmon version 2."), "{version}");
    let path = world.ok(&["info", "--format", "{{.Host.Conmon.Path}}"])?;
    ensure!(path == world.conmon.display().to_string(), "{path}");
    Ok(())
}

fn monitor_name(world: &World) -> Result<()> {
    let name = world.detached("mon", &[], "exec sleep 1000")?;
    let pid = world.field(&name, ".State.ConmonPid")?;
    ensure!(std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "conmon");
    ensure!(std::fs::read_link(format!("/proc/{pid}/exe"))?.ends_with("conmon"));
    world.remove(&name)
}

fn umask(world: &World) -> Result<()> {
    let out = world.ok(&["run", "--rm", IMAGE, "sh", "-c", "umask; touch /tmp/f; stat -c %a /tmp/f"])?;
    ensure!(out == "0022\n644", "{out}");
    Ok(())
}

fn events(world: &World) -> Result<()> {
    let name = world.detached("ev", &[], "exit 6")?;
    world.ok(&["wait", &name])?;
    until("the event", || {
        let filter = format!("container={name}");
        let args =
            ["events", "--stream=false", "--since", "5m", "--filter", &filter, "--filter", "event=died"];
        Ok(!world.ok(&args)?.is_empty())
    })?;
    world.remove(&name)
}

fn output_of_a_failed_start(world: &World) -> Result<()> {
    // The runtime refuses the container: its reason must reach the user.
    let done = world.any(&[
        "run",
        "--rm",
        "--cgroup-parent",
        "/no\\such",
        "--device",
        "/dev/null:/dev/x:q",
        IMAGE,
        "true",
    ])?;
    ensure!(!done.status.success() && !done.err().is_empty(), "{done:?}");
    let args = ["run", "--rm", "--sysctl", "kernel.no_such_thing=1", IMAGE, "true"];
    let done = world.any(&args)?;
    ensure!(done.code() == 126 || done.code() == 127 || done.code() == 125, "{done:?}");
    ensure!(done.err().contains("no_such_thing"), "{done:?}");
    Ok(())
}

/// No monitor and no container process of ours is left once all scenarios are done.
pub(crate) fn nothing_left(world: &World) -> Result<()> {
    world.ok(&["rm", "-f", "-a", "-t", "0"])?;
    let word = world.dir.path().display().to_string();
    until("all monitors to end", || {
        let processes = std::fs::read_dir("/proc")?.flatten();
        let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        let ours = lines.filter(|line| String::from_utf8_lossy(line).contains(&word));
        Ok(ours.count() == 0)
    })
}
