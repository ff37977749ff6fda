//! `pintle logs`: what a container wrote, in the order in which it did, from all files of its log; also while it grows and
//! is rotated.

mod chain;
mod reader;
mod show;
mod time;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lexopt::prelude::*;
use pintle_client::Error;

use crate::args::{one_id, text, unknown, usage};
use crate::context::Context;

use self::chain::{Chain, Missing};
use self::reader::Reader;
use self::show::Show;
use self::watch::Watch;

const LOGS: &str = "\
usage: pintle logs [options] ID

what a container wrote, from its log file (CRI format or json-file) and the files rotated away from it, oldest first

  -f, --follow       go on until the container ends; with --file alone until interrupted
  -n, --tail N       only the last N lines; default: all
      --since TIME   only what is younger: a time span such as 10m or 1h30m, a number of seconds since 1970, or
                     a time such as 2026-11-27T02:42:00Z (without a zone, or a date alone: UTC)
  -t, --timestamps   print each line's time
      --file FILE    read this log instead of the container's

rotated files are FILE.1, FILE.2 and so on, and those with a date (FILE.20261127-024200, FILE-20261127); compressed ones
are not read. Exit status 1: a line could not be read, or files were rotated away before they could be; it is told where
";

/// How often a shim is looked for that may have been killed.
const SHIM: Duration = Duration::from_secs(1);

pub(crate) async fn logs(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let (mut follow, mut tail, mut since, mut timestamps, mut file) = (false, None, None, false, None);
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("follow") => follow = true,
            Short('n') | Long("tail") => tail = lines(&text(parser.value()?)?)?,
            Long("since") => since = Some(time::point(&text(parser.value()?)?)?),
            Short('t') | Long("timestamps") => timestamps = true,
            Long("file") => file = Some(PathBuf::from(parser.value()?)),
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, LOGS)),
        }
    }
    let id = match (&file, ids.is_empty()) {
        (Some(_), true) => None,
        _ => Some(one_id(ids)?),
    };
    let path = match file {
        Some(path) => path,
        None => log_of(&cx, id.as_deref().unwrap_or_default()).await?,
    };
    let chain = Chain::new(&path)?;
    let mut watch = Watch::new(&chain);
    let mut show = Show::new(timestamps, since);
    // What was there when we began; for whoever does not follow it is the end.
    let last = chain.current(&mut watch)?;
    let reader = match tail {
        None => Reader::new(chain.oldest(&mut watch)?, 0),
        Some(lines) => {
            let (log, at, skip) = reader::tail(&chain, chain.current(&mut watch)?, lines)?;
            show.skip = skip;
            Reader::new(log, at)
        }
    };
    let mut life = Life::new(&cx, id.as_deref())?;
    if !follow {
        return history(&chain, reader, last, &mut watch, show, &life);
    }
    if let Some(dir) = &life.dir {
        watch.directory(dir);
    }
    following(&chain, reader, &mut watch, show, &mut life).await
}

/// Shows all up to the end of what was the current file at the beginning.
fn history(
    chain: &Chain,
    mut reader: Reader,
    last: chain::LogFile,
    watch: &mut Watch,
    mut show: Show,
    life: &Life,
) -> Result<i32> {
    loop {
        reader.drain(chain, &mut show)?;
        if reader.log.is(&last) {
            // What a writer has not written to its end yet is no mistake.
            if life.dir.as_ref().is_none_or(|dir| !pintle_client::has_shim(dir)) {
                reader.end(&mut show);
            }
            return show.finish();
        }
        reader.end(&mut show);
        let Some(next) = chain.next(&reader.log, watch)? else { return show.finish() };
        let missing = next.missing;
        let beyond = next.file.is_behind(&last);
        tell(missing, &mut show);
        if beyond {
            // All others between are gone; this one we hold.
            reader = Reader::new(last, 0);
            reader.drain(chain, &mut show)?;
            return show.finish();
        }
        reader = Reader::new(next.file, 0);
    }
}

/// Shows all until the container ends, and then the rest.
async fn following(
    chain: &Chain,
    mut reader: Reader,
    watch: &mut Watch,
    mut show: Show,
    life: &mut Life,
) -> Result<i32> {
    watch.only(&reader.log);
    loop {
        // Whether it has ended is asked first: what it wrote before is then all in the files.
        let ended = life.ended();
        loop {
            reader.drain(chain, &mut show)?;
            let Some(next) = chain.next(&reader.log, watch)? else { break };
            // A writer goes on in the old file until it has opened the new one.
            if !ended && next.file.len()? == 0 && next.missing == Missing::Files(0) {
                watch.also(&next.file);
                break;
            }
            reader.drain(chain, &mut show)?;
            reader.end(&mut show);
            tell(next.missing, &mut show);
            reader = Reader::new(next.file, 0);
            watch.only(&reader.log);
        }
        show.flush()?;
        if ended {
            reader.end(&mut show);
            tell(chain.gone(&reader.log, watch), &mut show);
            if life.lost {
                show.gap("the shim was lost and nobody writes the log any more; the container may live: see pintle adopt");
            }
            return show.finish();
        }
        watch.wait().await;
    }
}

/// Tells of files that are missing.
fn tell(missing: Missing, show: &mut Show) {
    match missing {
        Missing::Files(0) => {}
        Missing::Files(1) => show.gap("1 file of the log was rotated away before it could be read"),
        Missing::Files(n) => {
            show.gap(&format!("{n} files of the log were rotated away before they could be read"))
        }
        Missing::Unknown => show.gap("files of the log may have been rotated away before they could be read"),
    }
}

/// Whether somebody writes the log.
struct Life {
    /// State directory of the container; None for a file alone, of which nobody tells when it is done.
    dir: Option<PathBuf>,
    /// When the shim was last seen.
    seen: Instant,
    /// The shim went without telling the end.
    lost: bool,
}

impl Life {
    fn new(cx: &Context, id: Option<&str>) -> Result<Self> {
        let dir = id.map(|id| cx.dir(id)).transpose()?;
        Ok(Self { dir, seen: Instant::now() - SHIM, lost: false })
    }

    /// Whether the container has ended, or nobody writes its log any more.
    fn ended(&mut self) -> bool {
        let Some(dir) = &self.dir else { return false };
        if pintle_client::read_exit_record(dir).is_some() || !dir.exists() {
            return true;
        }
        if self.seen.elapsed() < SHIM {
            return false;
        }
        if pintle_client::has_shim(dir) {
            self.seen = Instant::now();
            return false;
        }
        // It may have ended in the meantime.
        self.lost = pintle_client::read_exit_record(dir).is_none() && dir.exists();
        true
    }
}

/// How many of the last lines are wanted; None for all, which docker also calls -1.
fn lines(value: &str) -> Result<Option<usize>> {
    match value {
        "all" | "-1" => Ok(None),
        n => n.parse().map(Some).map_err(|_| usage(format!("{n} is not a number of lines"))),
    }
}

/// The log file of a container.
async fn log_of(cx: &Context, id: &str) -> Result<PathBuf> {
    let dir = cx.dir(id)?;
    match cx.monitor(id)?.state().await {
        Ok(state) => return state.log_path.with_context(|| format!("container {id} has no log file")),
        Err(Error::NotRunning { .. } | Error::Disconnected { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let ours = dir.join("container.log");
    let state: Option<serde_json::Value> =
        std::fs::read(dir.join("state.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
    let told =
        state.as_ref().and_then(|s| s["log_path"].as_str()).filter(|p| !p.is_empty()).map(PathBuf::from);
    match told {
        Some(path) => Ok(path),
        None if ours.exists() => Ok(ours),
        None if dir.exists() => bail!("container {id} has no log file"),
        None => bail!("no container {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_lines() {
        assert_eq!((lines("all").unwrap(), lines("-1").unwrap(), lines("7").unwrap()), (None, None, Some(7)));
        assert!(lines("x").is_err());
    }
}
