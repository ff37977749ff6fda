//! Looking at containers: ps, inspect, stats, events.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Result, bail};
use lexopt::prelude::*;
use pintle_client::{Entry, Error, Event, ProcessId, State, Stats, Status};
use serde_json::{Value, json};

use crate::args::{self, one_id, text, unknown};
use crate::context::Context;
use crate::output::{self, exit_json, exit_text, rfc3339};
use crate::terminal;

const PS: &str = "\
usage: pintle ps [options]

  -q, --quiet    only ids
  -r, --running  only containers that live
";

/// What one line of `ps` is made from.
struct Row {
    entry: Entry,
    state: Option<State>,
}

impl Row {
    async fn of(entry: Entry) -> Self {
        let state = if entry.alive {
            entry.monitor().with_timeout(Duration::from_secs(5)).state().await.ok()
        } else {
            None
        };
        Self { entry, state }
    }

    fn status(&self) -> &'static str {
        match &self.state {
            Some(state) if state.stopping && state.status == Status::Running => "stopping",
            Some(state) => state.status.as_str(),
            None if self.entry.exit.is_some() => "stopped",
            None if self.entry.alive => "no answer",
            None => "shim lost",
        }
    }

    fn running(&self) -> bool {
        self.state
            .as_ref()
            .is_some_and(|s| matches!(s.status, Status::Running | Status::Paused | Status::Created))
    }

    /// The first process while it is there: the number of one that has ended may be another's by now.
    fn pid(&self) -> Option<i32> {
        self.state.as_ref().and_then(living).map(|p| p.pid)
    }

    fn json(&self) -> Value {
        let exit = self.state.as_ref().and_then(|s| s.exit.as_ref()).or(self.entry.exit.as_ref());
        json!({
            "id": self.entry.id,
            "status": self.status(),
            "pid": self.pid(),
            "created_at": self.state.as_ref().and_then(|s| s.created_at).map(rfc3339),
            "exit": exit.map(exit_json),
            "bundle": self.state.as_ref().map(|s| s.bundle.clone()),
        })
    }
}

fn living(state: &State) -> Option<ProcessId> {
    state.process.filter(|_| state.exit.is_none())
}

pub(crate) async fn ps(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let (mut quiet, mut running) = (false, false);
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('q') | Long("quiet") => quiet = true,
            Short('r') | Long("running") => running = true,
            Short('a') | Long("all") => running = false,
            other => return Err(unknown(other, PS)),
        }
    }
    let mut rows = Vec::new();
    for entry in pintle_client::scan(&cx.root)? {
        let row = Row::of(entry).await;
        if !running || row.running() {
            rows.push(row);
        }
    }
    if cx.json {
        output::print_json(&rows.iter().map(Row::json).collect())?;
    } else if quiet {
        for row in &rows {
            output::line(&row.entry.id)?;
        }
    } else {
        let head = ["ID", "STATUS", "PID", "AGE", "END", "BUNDLE"];
        let mut table = vec![head.map(String::from).to_vec()];
        table.extend(rows.iter().map(cells));
        output::table(&table)?;
    }
    Ok(0)
}

fn cells(row: &Row) -> Vec<String> {
    let status = row.status();
    let colour = match status {
        "running" => "32",
        "shim lost" | "no answer" => "31",
        "paused" | "stopping" => "33",
        _ => "0",
    };
    let state = row.state.as_ref();
    let exit = state.and_then(|s| s.exit.as_ref()).or(row.entry.exit.as_ref());
    vec![
        row.entry.id.clone(),
        if terminal::colours() { format!("\x1b[{colour}m{status}\x1b[0m") } else { status.into() },
        row.pid().map_or_else(|| "-".into(), |pid| pid.to_string()),
        output::ago(state.and_then(|s| s.created_at)),
        exit.map_or_else(|| "-".into(), exit_text),
        state.map_or_else(|| "-".into(), |s| s.bundle.display().to_string()),
    ]
}

const INSPECT: &str = "\
usage: pintle inspect ID...

prints JSON: one object, or a list for several ids
";

pub(crate) async fn inspect(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, INSPECT)),
        }
    }
    if ids.is_empty() {
        return Err(args::usage("the id of a container is missing"));
    }
    let mut documents = Vec::new();
    for id in &ids {
        documents.push(document(&cx, id).await?);
    }
    output::print_json(&if ids.len() == 1 { documents.remove(0) } else { documents.into() })?;
    Ok(0)
}

async fn document(cx: &Context, id: &str) -> Result<Value> {
    let dir = cx.dir(id)?;
    let monitor = cx.monitor(id)?;
    let (info, state) = match (monitor.info().await, monitor.state().await) {
        (Ok(info), Ok(state)) => (info, state),
        (Err(Error::NotRunning { .. }), _) | (_, Err(Error::NotRunning { .. })) => {
            let Some(exit) = pintle_client::read_exit_record(&dir) else {
                if dir.exists() {
                    return Ok(json!({"id": id, "status": "shim lost", "dir": dir}));
                }
                bail!("no container {id}");
            };
            return Ok(json!({"id": id, "status": "stopped", "dir": dir, "exit": exit_json(&exit)}));
        }
        (Err(e), _) | (_, Err(e)) => return Err(e.into()),
    };
    let execs: Vec<Value> = state
        .execs
        .iter()
        .map(|e| {
            json!({
                "id": e.id, "pid": e.pid, "status": e.status.as_str(), "terminal": e.terminal,
                "exit": e.exit.as_ref().map(exit_json),
            })
        })
        .collect();
    Ok(json!({
        "id": id,
        "status": state.status.as_str(),
        "stopping": state.stopping,
        "pid": living(&state).map(|p| p.pid),
        "pid_start": living(&state).map(|p| p.start),
        "bundle": state.bundle,
        "dir": dir,
        "log_path": state.log_path,
        "terminal": state.terminal,
        "cgroup": state.cgroup,
        "created_at": state.created_at.map(rfc3339),
        "started_at": state.started_at.map(rfc3339),
        "exit": state.exit.as_ref().map(exit_json),
        "execs": execs,
        "io": {
            "stdout_bytes": state.io.stdout_bytes, "stderr_bytes": state.io.stderr_bytes,
            "stdin_bytes": state.io.stdin_bytes, "lost_bytes": state.io.lost_bytes,
            "clients": state.io.clients, "clients_dropped": state.io.clients_dropped,
            "reopened": state.io.reopened,
        },
        "oom": {"kills": state.oom_kills, "events": state.oom_events},
        "runtime": {
            "path": state.runtime.path, "root": state.runtime.root, "args": state.runtime.args,
            "systemd_cgroup": state.runtime.systemd_cgroup,
        },
        "shim": {
            "pid": info.pid, "version": info.version, "protocol": info.protocol, "door": info.door,
            "abilities": info.abilities, "started_at": info.started_at.map(rfc3339),
        },
        "last_event": state.last_event,
    }))
}

const STATS: &str = "\
usage: pintle stats [options] [ID...]

  -f, --follow TIME  print again and again, at this interval
      --no-stream    print once, as without --follow
without ids: every container that lives
";

pub(crate) async fn stats(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let mut follow = None;
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("follow") => follow = Some(args::duration(&text(parser.value()?)?)?),
            Long("no-stream") => follow = None,
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, STATS)),
        }
    }
    loop {
        let named = !ids.is_empty();
        let chosen = if named {
            ids.clone()
        } else {
            pintle_client::scan(&cx.root)?
                .into_iter()
                .filter(|e| e.alive && e.exit.is_none())
                .map(|e| e.id)
                .collect()
        };
        let head = ["ID", "CPU TIME", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN", "OOM KILLS", "SHIM"];
        let mut table = vec![head.map(String::from).to_vec()];
        let mut documents = Vec::new();
        for id in chosen {
            match cx.monitor(&id)?.stats().await {
                Ok(s) if cx.json => documents.push(stats_json(&id, &s)),
                Ok(s) => table.push(stats_cells(&id, &s)),
                // Without names, one that ended in the meantime is no error.
                Err(e) if named => return Err(e.into()),
                Err(_) => {}
            }
        }
        if cx.json {
            output::print_json(&documents.into())?;
        } else {
            output::table(&table)?;
        }
        match follow {
            Some(interval) => tokio::time::sleep(interval).await,
            None => return Ok(0),
        }
    }
}

/// Bytes read and written by all devices.
fn block_io(s: &Stats) -> (u64, u64) {
    let sum = |op: &str| s.blkio.iter().filter(|b| b.op.eq_ignore_ascii_case(op)).map(|b| b.bytes).sum();
    (sum("read"), sum("write"))
}

fn stats_cells(id: &str, s: &Stats) -> Vec<String> {
    let (read, written) = block_io(s);
    let limit = s.memory.limit;
    vec![
        id.into(),
        output::seconds(s.cpu.usage_ns),
        output::size(s.memory.usage),
        if limit == 0 { "-".into() } else { output::size(limit) },
        s.pids.current.to_string(),
        output::size(read),
        output::size(written),
        s.oom.oom_kills.to_string(),
        output::size(s.shim_rss),
    ]
}

fn stats_json(id: &str, s: &Stats) -> Value {
    let (read, written) = block_io(s);
    json!({
        "id": id,
        "cgroup_version": s.cgroup_version,
        "cpu": {
            "usage_ns": s.cpu.usage_ns, "user_ns": s.cpu.user_ns, "system_ns": s.cpu.system_ns,
            "periods": s.cpu.periods, "throttled_periods": s.cpu.throttled_periods,
            "throttled_ns": s.cpu.throttled_ns,
        },
        "memory": {
            "usage": s.memory.usage, "working_set": s.memory.working_set, "rss": s.memory.rss,
            "cache": s.memory.cache, "swap": s.memory.swap, "limit": s.memory.limit,
            "max_usage": s.memory.max_usage, "fail_count": s.memory.fail_count,
            "page_faults": s.memory.page_faults, "major_page_faults": s.memory.major_page_faults,
        },
        "pids": {"current": s.pids.current, "limit": s.pids.limit},
        "block_io": {"read": read, "written": written},
        "oom": {"kills": s.oom.oom_kills, "events": s.oom.oom_events},
        "shim": {"rss": s.shim_rss, "anonymous": s.shim_anonymous},
    })
}

const EVENTS: &str = "\
usage: pintle events [options] ID

  -f, --follow    go on until the container is removed
      --after N   only events with a higher number
";

pub(crate) async fn events(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let (mut follow, mut after) = (false, 0);
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("follow") => follow = true,
            Long("after") => after = parser.value()?.parse::<u64>()?,
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, EVENTS)),
        }
    }
    let monitor = cx.monitor(&one_id(ids)?)?;
    if follow {
        let mut stream = monitor.events(after);
        while let Some(event) = stream.next().await? {
            print_event(&cx, &event)?;
        }
        return Ok(0);
    }
    loop {
        let events = monitor.poll_events(after, Duration::ZERO).await?;
        let Some(last) = events.last() else { return Ok(0) };
        after = last.sequence;
        for event in &events {
            print_event(&cx, event)?;
        }
    }
}

fn print_event(cx: &Context, event: &Event) -> Result<()> {
    if cx.json {
        // One object on one line: what a program reads while more are to come.
        let value = json!({
            "sequence": event.sequence, "at": event.at.map(rfc3339), "kind": event.kind.as_str(),
            "exec_id": event.exec_id, "pid": event.pid, "exit": event.exit.as_ref().map(exit_json),
            "attributes": event.attributes,
        });
        return output::line(value);
    }
    let mut text = format!(
        "{:>4}  {}  {}",
        event.sequence,
        event.at.map_or_else(|| "-".into(), rfc3339),
        event.kind.as_str()
    );
    if !event.exec_id.is_empty() {
        text.push_str(&format!("  exec {}", event.exec_id));
    }
    if event.pid != 0 {
        text.push_str(&format!("  pid {}", event.pid));
    }
    if let Some(exit) = &event.exit {
        text.push_str(&format!("  {}", exit_text(exit)));
    }
    for (key, value) in &event.attributes {
        text.push_str(&format!("  {key}={value}"));
    }
    output::line(text)
}
