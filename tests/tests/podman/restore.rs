//! Checkpoints and restores, with the criu of a newer release: Debian 12's does not start on newer kernels.

use anyhow::{Context as _, Result, ensure};
use pintle_tests::{newer_criu, parse_cri, rejoin};

use crate::world::{IMAGE, World, until};
use crate::{Scenario, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("checkpoint_and_restore", checkpoint_and_restore),
    scenario("checkpoint_leave_running", checkpoint_leave_running),
    scenario("checkpoint_export_import", checkpoint_export_import),
    scenario("restore_that_fails", restore_that_fails),
];

/// Counts, and ends with 5 when told to.
const COUNTER: &str = "i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo \"n $i\"; sleep 0.05; done; exit 5";

/// Lines `n 1` to `n k` without a gap; returns k.
fn count(world: &World, name: &str) -> Result<usize> {
    let path = world.field(name, ".HostConfig.LogConfig.Path")?;
    let records = parse_cri(&std::fs::read(&path).context(path)?).map_err(anyhow::Error::msg)?;
    let text = String::from_utf8(rejoin(&records, "stdout"))?;
    for (i, line) in text.lines().enumerate() {
        ensure!(line == format!("n {}", i + 1), "{line:?} in line {} of {text}", i + 1);
    }
    Ok(text.lines().count())
}

fn goes_on(world: &World, name: &str, before: usize) -> Result<()> {
    until("more output", || Ok(count(world, name)? > before + 3))
}

/// Ends it by a command inside; its own code must come, and the log must be whole.
fn finish(world: &World, name: &str) -> Result<()> {
    world.ok(&["exec", name, "touch", "/tmp/stop"])?;
    ensure!(world.ok(&["wait", name])? == "5");
    ensure!(world.field(name, ".State.ExitCode")? == "5");
    count(world, name).map(drop)
}

fn checkpoint_and_restore(world: &World) -> Result<()> {
    if newer_criu().is_none() {
        return Ok(());
    }
    let name = world.detached("ckr", &[], COUNTER)?;
    goes_on(world, &name, 0)?;
    // The second round restores what was restored before.
    for _ in 0..2 {
        let before = world.field(&name, ".State.ConmonPid")?;
        world.ok(&["container", "checkpoint", &name])?;
        ensure!(world.field(&name, ".State.Status")? == "exited");
        let written = count(world, &name)?;
        world.ok(&["container", "restore", &name])?;
        ensure!(world.field(&name, ".State.Status")? == "running");
        ensure!(world.field(&name, ".State.ConmonPid")? != before);
        goes_on(world, &name, written)?;
    }
    finish(world, &name)?;
    world.remove(&name)
}

fn checkpoint_leave_running(world: &World) -> Result<()> {
    if newer_criu().is_none() {
        return Ok(());
    }
    let name = world.detached("ckl", &[], COUNTER)?;
    goes_on(world, &name, 0)?;
    world.ok(&["container", "checkpoint", "--leave-running", &name])?;
    ensure!(world.field(&name, ".State.Status")? == "running");
    goes_on(world, &name, count(world, &name)?)?;
    finish(world, &name)?;
    world.remove(&name)
}

fn checkpoint_export_import(world: &World) -> Result<()> {
    if newer_criu().is_none() {
        return Ok(());
    }
    let (name, again) = (world.detached("cke", &[], COUNTER)?, world.id("cki"));
    goes_on(world, &name, 0)?;
    let archive = world.path("checkpoint.tar.gz").display().to_string();
    world.ok(&["container", "checkpoint", "-c", "gzip", "--export", &archive, &name])?;
    let written = count(world, &name)?;
    world.remove(&name)?;
    // Another container with another id; Podman brings the first one's log along, and it goes on there.
    world.ok(&["container", "restore", "--import", &archive, "--name", &again])?;
    goes_on(world, &again, written)?;
    ensure!(world.ok(&["ps", "-q", "--filter", &format!("name={again}")])?.len() == 12);
    finish(world, &again)?;
    world.remove(&again)?;
    std::fs::remove_file(archive).map_err(Into::into)
}

fn restore_that_fails(world: &World) -> Result<()> {
    if newer_criu().is_none() {
        return Ok(());
    }
    let name = world.id("ckf");
    world.ok(&["run", "-d", "--name", &name, IMAGE, "sleep", "1000"])?;
    world.ok(&["container", "checkpoint", "--keep", &name])?;
    let bundle = world.field(&name, ".OCIConfigPath")?;
    let images = std::path::Path::new(&bundle).parent().context("a directory")?.join("checkpoint");
    std::fs::write(images.join("inventory.img"), "no image")?;
    let done = world.code(125, &["container", "restore", &name])?;
    // The runtime's reason.
    ensure!(done.err().contains("criu failed"), "{}", done.err());
    ensure!(world.field(&name, ".State.Running")? == "false");
    world.remove(&name)
}
