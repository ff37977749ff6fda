//! `podman logs` by every driver.

use std::io::Read as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use pintle_tests::{parse_cri, rejoin, require_tool, scaled};

use crate::io::Text;
use crate::world::{IMAGE, World, until, wait};
use crate::{Scenario, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("logs_two_streams", logs_two_streams),
    scenario("logs_format", logs_format),
    scenario("logs_tail", logs_tail),
    scenario("logs_timestamps_since", logs_timestamps_since),
    scenario("logs_follow", logs_follow),
    scenario("logs_partial_lines", logs_partial_lines),
    scenario("logs_long_line", logs_long_line),
    scenario("logs_big", logs_big),
    scenario("logs_last_line", logs_last_line),
    scenario("logs_terminal", logs_terminal),
    scenario("log_max_size", log_max_size),
    scenario("log_path", log_path),
    scenario("log_driver_json_file", log_driver_json_file),
    scenario("log_driver_none", log_driver_none),
    scenario("log_driver_passthrough", log_driver_passthrough),
    scenario("log_driver_journald", log_driver_journald),
];

fn finished(world: &World, tag: &str, options: &[&str], script: &str) -> Result<String> {
    let name = world.detached(tag, options, script)?;
    world.ok(&["wait", &name])?;
    Ok(name)
}

fn logs_two_streams(world: &World) -> Result<()> {
    let name = finished(world, "l2", &[], "echo out; echo err >&2")?;
    let done = world.code(0, &["logs", &name])?;
    ensure!(done.out() == "out" && done.err() == "err", "{done:?}");
    world.remove(&name)
}

fn log_file(world: &World, name: &str) -> Result<Vec<u8>> {
    let path = world.field(name, ".HostConfig.LogConfig.Path")?;
    std::fs::read(&path).with_context(|| path)
}

fn logs_format(world: &World) -> Result<()> {
    let name = finished(world, "lf", &[], "printf 'a\\n\\nb'; printf 'c\\n' >&2")?;
    let records = parse_cri(&log_file(world, &name)?).map_err(anyhow::Error::msg)?;
    ensure!(rejoin(&records, "stdout") == b"a\n\nb", "{records:?}");
    ensure!(rejoin(&records, "stderr") == b"c\n", "{records:?}");
    ensure!(records.iter().filter(|record| record.partial).count() == 1, "{records:?}");
    world.remove(&name)
}

fn logs_tail(world: &World) -> Result<()> {
    let name = finished(world, "lt", &[], "seq 1 100")?;
    ensure!(world.ok(&["logs", "--tail", "3", &name])? == "98\n99\n100");
    ensure!(world.ok(&["logs", &name])?.lines().count() == 100);
    world.remove(&name)
}

fn logs_timestamps_since(world: &World) -> Result<()> {
    let name = finished(world, "ls", &[], "echo line")?;
    let line = world.ok(&["logs", "-t", &name])?;
    ensure!(line.ends_with(" line") && line.starts_with("20"), "{line}");
    ensure!(world.ok(&["logs", "--since", "1h", &name])? == "line");
    world.remove(&name)
}

fn logs_follow(world: &World) -> Result<()> {
    let name = world.detached("lfo", &[], "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done")?;
    let mut command = world.podman(&["logs", "-f", &name]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut text = String::new();
    child.stdout.take().context("a pipe")?.read_to_string(&mut text)?;
    wait(&mut child)?;
    ensure!(text == "1\n2\n3\n4\n5\n", "{text:?}");
    world.remove(&name)
}

fn logs_partial_lines(world: &World) -> Result<()> {
    let name =
        finished(world, "lp", &[], "printf a; sleep 0.3; printf 'b\\n'; printf c; sleep 0.3; printf 'd\\n'")?;
    ensure!(world.ok(&["logs", &name])? == "ab\ncd");
    world.remove(&name)
}

fn logs_long_line(world: &World) -> Result<()> {
    let script = "dd if=/dev/zero bs=100000 count=1 2>/dev/null | tr '\\0' x; echo; echo end";
    let name = finished(world, "ll", &[], script)?;
    let text = world.ok(&["logs", &name])?;
    ensure!(text.len() == 100_004 && text.ends_with("x\nend"), "{} bytes", text.len());
    world.remove(&name)
}

fn logs_big(world: &World) -> Result<()> {
    let text = Text::write(world, scaled(16, 200))?;
    let name = world.id("lb");
    world.ok(&["run", "-d", "-v", &text.mount(), "--name", &name, IMAGE, "cat", "/mnt/file"])?;
    ensure!(world.ok(&["wait", &name])? == "0");
    let done = world.code(0, &["logs", &name])?;
    text.check(&done.stdout)?;
    world.remove(&name)
}

fn logs_last_line(world: &World) -> Result<()> {
    for round in 0..scaled(4, 40) {
        let name = finished(world, "le", &[], "echo last")?;
        ensure!(world.ok(&["logs", &name])? == "last", "round {round}");
        world.remove(&name)?;
    }
    Ok(())
}

fn logs_terminal(world: &World) -> Result<()> {
    let name = finished(world, "lty", &["-t"], "echo one; echo two")?;
    let log = log_file(world, &name)?;
    let records = parse_cri(&log).map_err(anyhow::Error::msg)?;
    ensure!(rejoin(&records, "stdout") == b"one\r\ntwo\r\n", "{records:?}");
    world.remove(&name)
}

fn log_max_size(world: &World) -> Result<()> {
    let name = finished(world, "lm", &["--log-opt", "max-size=20k"], "seq 1 20000")?;
    let log = log_file(world, &name)?;
    ensure!(log.len() <= 20 * 1024 + 8192, "{} bytes", log.len());
    ensure!(log.ends_with(b" stdout F 20000\n"));
    world.remove(&name)
}

fn log_path(world: &World) -> Result<()> {
    let path = world.path("own-log");
    let option = format!("path={}", path.display());
    let name = finished(world, "lpa", &["--log-opt", &option], "echo here")?;
    ensure!(std::fs::read(&path)?.ends_with(b" stdout F here\n"));
    world.remove(&name)
}

fn log_driver_json_file(world: &World) -> Result<()> {
    let name = finished(world, "ldj", &["--log-driver", "json-file"], "echo here")?;
    ensure!(world.ok(&["logs", &name])? == "here");
    world.remove(&name)
}

fn log_driver_none(world: &World) -> Result<()> {
    let done = world.code(0, &["run", "--rm", "--log-driver", "none", IMAGE, "echo", "seen"])?;
    ensure!(done.out() == "seen", "{done:?}");
    let name = finished(world, "ldn", &["--log-driver", "none"], "echo lost")?;
    ensure!(world.any(&["logs", &name])?.code() != 0);
    world.remove(&name)
}

fn log_driver_passthrough(world: &World) -> Result<()> {
    let script = "echo direct; echo too >&2; exit 3";
    let name = world.id("ldp");
    // Podman answers before the container has ended, and its output comes straight from the container.
    let args = ["run", "--log-driver", "passthrough", "--name", &name, IMAGE, "sh", "-c", script];
    let mut command = world.podman(&args);
    let (out, err) = (world.path("pass-out"), world.path("pass-err"));
    command.stdin(Stdio::null());
    command.stdout(std::fs::File::create(&out)?).stderr(std::fs::File::create(&err)?);
    wait(&mut command.spawn()?)?;
    ensure!(world.ok(&["wait", &name])? == "3");
    until("the output", || {
        Ok(std::fs::read(&out)?.ends_with(b"direct\n") && std::fs::read(&err)?.ends_with(b"too\n"))
    })?;
    world.remove(&name)
}

/// journald without systemd: in a mount namespace of its own.
fn log_driver_journald(world: &World) -> Result<()> {
    let name = world.id("ldjd");
    let script = r#"
set -e
mount -t tmpfs t /var/log
mount -t tmpfs t /run/systemd 2>/dev/null || { mkdir -p /run/systemd; mount -t tmpfs t /run/systemd; }
mkdir -p /run/systemd/journal /run/log/journal
mount -t tmpfs t /run/log
mkdir -p /run/log/journal
/lib/systemd/systemd-journald & j=$!
trap 'kill $j; wait $j 2>/dev/null || :' EXIT
for i in $(seq 600); do [ -S /run/systemd/journal/socket ] && break; sleep 0.05; done
"$@" run -d --log-driver journald --log-opt tag=thetag --name "$NAME" bb:1 sh -c 'echo out; echo err >&2' >/dev/null
"$@" wait "$NAME" >/dev/null
journalctl --sync
"$@" logs "$NAME" 2>&1 | sort
journalctl -o json CONTAINER_NAME="$NAME" CONTAINER_TAG=thetag | grep -c CONTAINER_ID_FULL
"$@" rm -f -t 0 "$NAME" >/dev/null
"#;
    let mut command = world.enter(&require_tool("unshare"));
    command.args(["-m", "--propagation", "private", "bash", "-c", script, "bash"]);
    command.arg(require_tool("podman")).arg("--tmpdir").arg(world.dir.join("tmp")).env("NAME", &name);
    world.furnish(&mut command);
    let done = world.finish(command, b"")?;
    ensure!(done.status.success() && done.out() == "err\nout\n2", "{done:?}");
    Ok(())
}
