//! Podman runs on the conmon door: the same script against Debian's conmon and ours.
//!
//! Each world has its own storage and configuration; nothing under /etc is read or changed. Ours must
//! pass every scenario that Debian's conmon passes. `PINTLE_PODMAN=word` runs the scenarios whose name
//! contains the word, `PINTLE_PODMAN_PEER=0` leaves the peer out.
//! `PINTLE_PODMAN_ROOT=DIR` takes Podman, conmon and runtime from another release's tree, such as the one
//! that `cargo xtask newer --podman` unpacks.

mod io;
mod lifecycle;
mod logs;
mod restore;
mod system;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};
use pintle_tests::{conmon, require_tool, within_bounds};
use world::World;

/// One scenario.
pub(crate) struct Scenario {
    name: &'static str,
    run: fn(&World) -> Result<()>,
    /// Podman itself fails it at times with any conmon, so it may be tried again.
    flaky: bool,
}

/// A row of a list of scenarios.
pub(crate) const fn scenario(name: &'static str, run: fn(&World) -> Result<()>) -> Scenario {
    Scenario { name, run, flaky: false }
}

/// The same for one that Podman fails at times by itself.
pub(crate) const fn flaky(name: &'static str, run: fn(&World) -> Result<()>) -> Scenario {
    Scenario { name, run, flaky: true }
}

/// Attempts that the peer always has, and ours where Podman is known to fail.
const ATTEMPTS: usize = 3;

/// Scenarios of a whole run that may be tried once more.
const STUMBLES: usize = 2;

fn attempt(scenario: &Scenario, world: &World, attempts: usize) -> Result<()> {
    let mut last = Ok(());
    for number in 1..=attempts {
        let started = Instant::now();
        // The support library panics at its deadlines.
        let run = || {
            (scenario.run)(world)?;
            within_bounds(&world.dir.path().to_string_lossy());
            Ok(())
        };
        last = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(anyhow!("{}", text.unwrap_or_else(|| "panic".into())))
        });
        let spent = started.elapsed().as_secs_f32();
        match &last {
            Ok(()) => {
                println!("{:10} {:28} ok {spent:5.1} s", world.name, scenario.name);
                return Ok(());
            }
            Err(error) => {
                println!(
                    "{:10} {:28} FAILED {spent:5.1} s (attempt {number}): {error:#}",
                    world.name, scenario.name
                );
            }
        }
    }
    last
}

#[test]
fn every_scenario_that_the_peer_passes() {
    let filter = std::env::var("PINTLE_PODMAN").unwrap_or_default();
    let with_peer = std::env::var_os("PINTLE_PODMAN_PEER").is_none_or(|value| value != "0");
    let all = [lifecycle::SCENARIOS, io::SCENARIOS, logs::SCENARIOS, restore::SCENARIOS, system::SCENARIOS]
        .concat_refs();
    let chosen: Vec<&Scenario> = all.into_iter().filter(|scenario| scenario.name.contains(&filter)).collect();
    assert!(!chosen.is_empty(), "no scenario is named *{filter}*");
    assert!(!filter.is_empty() || chosen.len() >= 50, "only {} scenarios", chosen.len());
    let ours = World::new("ours", conmon()).expect("set up podman with our conmon");
    let peer = World::new("peer", require_tool("conmon")).expect("set up podman with Debian's conmon");
    let (next, failed, again) = (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(scenario) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut by_ours = attempt(scenario, &ours, if scenario.flaky { ATTEMPTS } else { 1 });
                    // Podman stumbles at times with any conmon; more than that is ours.
                    if by_ours.is_err() && again.fetch_add(1, Ordering::Relaxed) < STUMBLES {
                        by_ours = attempt(scenario, &ours, 1);
                    }
                    let by_peer = if with_peer { attempt(scenario, &peer, ATTEMPTS) } else { Ok(()) };
                    match (by_ours, by_peer) {
                        (Err(error), Ok(())) => {
                            failed.lock().expect("list").push(format!("{}: {error:#}", scenario.name));
                        }
                        (_, Err(_)) => println!("the peer cannot do {}", scenario.name),
                        (Ok(()), Ok(())) => {}
                    }
                }
            });
        }
    });
    let nothing_left = system::nothing_left(&ours);
    drop((ours, peer));
    let failed = failed.into_inner().expect("list");
    assert!(failed.is_empty(), "ours fails what Debian's conmon passes:\n{}", failed.join("\n"));
    nothing_left.expect("nothing is left over");
}

/// Joins slices of things that cannot be cloned.
trait ConcatRefs<T> {
    fn concat_refs(&self) -> Vec<&'static T>;
}

impl<T: 'static> ConcatRefs<T> for [&'static [T]] {
    fn concat_refs(&self) -> Vec<&'static T> {
        self.iter().flat_map(|slice| slice.iter()).collect()
    }
}
