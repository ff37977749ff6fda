//! The end of a container, from top to bottom. Every step runs even where an earlier one failed.

use super::container::Container;
use super::events::EventKind;
use super::failpoint::reached;
use super::log::LossCause;
use super::pump::DrainPolicy;
use super::reap::Ended;
use super::record::{write_ending, write_exit_record};
use super::{persist, tree};
use pintle_core::life::Step;
use pintle_core::record::ExitRecord;
use pintle_sys::clock;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Runs the steps after init was reaped.
pub async fn run(container: &Arc<Container>, ended: Ended) {
    // Before anything that may take time: whoever removes the cgroup takes its counters away.
    let sigkilled = ended.exit.signal() == Some(libc::SIGKILL);
    let oom = container.lock().oom.clone();
    let new_kills = match &oom {
        Some(oom) => oom.look_at_end(sigkilled).await,
        None => 0,
    };
    let _active = container.activity.read().await;
    reached("reaped");
    // A start that is still being answered is told first.
    drop(container.starting.lock().await);
    let (pid, started_at, hub, cgroups, execs, spec, private) = {
        let inner = container.lock();
        (
            inner.pid,
            inner.started_at,
            inner.hub.clone(),
            inner.cgroups.clone(),
            inner.execs.values().cloned().collect::<Vec<_>>(),
            inner.spec.clone().unwrap_or_default(),
            inner.facts.own_pid_namespace,
        )
    };
    container.figures.close();
    if new_kills > 0 {
        container.tell_oom(new_kills);
    }
    let verdict = oom.map(|oom| oom.verdict(sigkilled)).unwrap_or_default();
    let mut record = ExitRecord {
        id: container.id.clone(),
        exec_id: String::new(),
        pid,
        exit: ended.exit,
        oom: verdict,
        started_at,
        finished_at: ended.at,
        boot_id: clock::boot_id(),
        log_bytes_lost: 0,
        output_leaked: false,
    };
    // The one thing that cannot be had a second time.
    if let Err(error) = write_ending(&container.dir, &record) {
        eprintln!("note the end of {}: {error}", container.id);
    }
    // In a pid namespace of its own everything dies with init, so the execs end now; their ends are told first.
    if private {
        let all = async {
            for exec in &execs {
                exec.wait().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), all).await;
    } else if cgroups.populated() == Some(true) && container.lock().stop.is_some() {
        // Being stopped means all of it.
        let _ = tree::signal_all(&cgroups, libc::SIGKILL);
    }
    // Drain, bounded: a left-over process may hold the streams for ever.
    if let Some(hub) = &hub {
        let drained = hub.drained(DrainPolicy { cap: spec.drain(), ..DrainPolicy::default() }).await;
        record.output_leaked = drained.leaked;
        reached("drained");
        // Flush, fsync, close the log; attach clients get their ends.
        if let Err(error) = hub.finish(true).await {
            eprintln!("finish log of {}: {error}", container.id);
            // What was taken may not have reached the disk; how much of it, nobody knows.
            let cause = error.io().map_or(LossCause::Errno(libc::EIO), LossCause::of).name();
            let attributes = [("cause", cause), ("sync", error.to_string())];
            container.events.push(EventKind::BytesLost, "", pid, None, &attributes);
        }
        record.log_bytes_lost = hub.counters().losses.total();
    }
    reached("log-closed");
    if let Err(error) = write_exit_record(&container.dir, &record) {
        eprintln!("write exit record of {}: {error}", container.id);
    }
    reached("record-written");
    if let Some(dir) = &spec.exit_dir {
        let path = dir.join(&container.id);
        if let Err(error) =
            persist::write_durable(&path, record.exit.shell_code().to_string().as_bytes(), 0o644)
        {
            eprintln!("write {}: {error}", path.display());
        }
    }
    reached("exit-file-written");
    let news = {
        let mut inner = container.lock();
        inner.stop = None;
        // Its descriptors are of no use any more.
        inner.oom = None;
        inner.life.take(Step::Ended)
    };
    container.save();
    reached("saved");
    if news {
        container.events.push(EventKind::Exited, "", pid, Some(record.clone()), &[]);
    }
    container.ended.send_replace(Some(record));
    reached("told");
    run_exit_command(container, &spec.exit_command);
    // The burst is over; what the buffers used goes back.
    pintle_sys::mem::trim();
}

/// Starts the exit command; it is reaped like every child.
fn run_exit_command(container: &Arc<Container>, command: &[String]) {
    let Some((program, args)) = command.split_first() else { return };
    let mut run = Command::new(program);
    run.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = container.reaper.spawn(&mut run) {
        eprintln!("start exit command {program}: {error}");
    }
}
