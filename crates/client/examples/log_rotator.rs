//! Rotates the logs of running containers by size, as the kubelet does: rename, ask for the log to
//! be opened anew, keep a number of old files.
//!
//! ```text
//! cargo run --example log_rotator -- [--dir /run/pintle] [--max-size 10485760] [--max-files 5]
//!     [--interval-ms 10000] [--once]
//! ```

use pintle_client::{Monitor, default_root, scan};
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

struct Options {
    dir: PathBuf,
    max_size: u64,
    max_files: usize,
    interval: Duration,
    once: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        dir: default_root(),
        max_size: 10 << 20,
        max_files: 5,
        interval: Duration::from_secs(10),
        once: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--dir" => options.dir = value()?.into(),
            "--max-size" => options.max_size = value()?.parse()?,
            "--max-files" => options.max_files = value()?.parse::<usize>()?.max(2),
            "--interval-ms" => options.interval = Duration::from_millis(value()?.parse()?),
            "--once" => options.once = true,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(options)
}

/// Old files of a log, the oldest first: their names end in the time they were set aside.
fn rotated(log: &Path) -> Vec<PathBuf> {
    let Some((dir, name)) = log.parent().zip(log.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)))
        .map(|e| e.path())
        .collect();
    files.sort();
    files
}

/// Sets the log aside if it is too large.
async fn rotate(monitor: &Monitor, log: &Path, options: &Options) -> Result<bool> {
    let size = std::fs::metadata(log).map(|m| m.len()).unwrap_or(0);
    if size < options.max_size {
        return Ok(false);
    }
    let old = rotated(log);
    // The current file and the one made now count as well.
    let surplus = (old.len() + 2).saturating_sub(options.max_files);
    for file in old.iter().take(surplus) {
        std::fs::remove_file(file)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let aside =
        log.with_file_name(format!("{}.{now:020}", log.file_name().unwrap_or_default().to_string_lossy()));
    std::fs::rename(log, &aside)?;
    if let Err(error) = monitor.reopen_log().await {
        // Nothing may be lost: the shim still writes to the file under its new name.
        std::fs::rename(&aside, log)?;
        return Err(error.into());
    }
    Ok(true)
}

async fn pass(options: &Options) -> Result<()> {
    for entry in scan(&options.dir)?.into_iter().filter(|e| e.alive) {
        let monitor = entry.monitor();
        // A container that ends while it is looked at is no trouble.
        let Ok(state) = monitor.state().await else { continue };
        let Some(log) = state.log_path.filter(|_| state.exit.is_none()) else { continue };
        match rotate(&monitor, &log, options).await {
            Ok(true) => println!("{}: rotated {}", entry.id, log.display()),
            Ok(false) => {}
            Err(error) => eprintln!("{}: {error}", entry.id),
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = options()?;
    loop {
        pass(&options).await?;
        if options.once {
            return Ok(());
        }
        tokio::time::sleep(options.interval).await;
    }
}
