//! The log drivers that a command line asks for.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use pintle_core::journal::JournalConfig;
use pintle_core::rotate::SizeLimits;

use super::options::Options;
use super::pipes::strerror;
use crate::engine::log::{
    FileConfig, FileSink, JOURNAL_SOCKET, JournaldSink, LogError, LogSink, ReopenPolicy,
};

/// Opens every log, the file first: each chunk goes to them in this order.
pub(super) fn open(options: &Options) -> Result<Vec<Box<dyn LogSink>>, String> {
    let log = &options.log;
    let mut sinks: Vec<Box<dyn LogSink>> = Vec::new();
    if let Some(path) = &log.drivers.file {
        let config = FileConfig {
            path: path.clone(),
            // 0 is "no limit".
            limits: SizeLimits { file: log.size_max.unwrap_or(0), total: log.global_size_max.unwrap_or(0) },
            max_files: log.rotate.then_some(log.max_files),
            reopen: ReopenPolicy::Replace,
            allow_dirs: log.allow_dirs.clone(),
            ..FileConfig::default()
        };
        let sink =
            FileSink::open(config).map_err(|error| format!("Failed to open log file {}", cause(&error)))?;
        sinks.push(Box::new(sink));
    }
    if log.drivers.journald {
        let config = JournalConfig {
            id: options.cid.as_bytes().to_vec(),
            name: options.name.clone().map(OsStringExt::into_vec),
            tag: log.tag.clone(),
            labels: log.labels.clone(),
            no_partial_marker: !log.mark_partial,
            // Podman's reader stops at any priority that is not a stream's own.
            priority_prefix: false,
        };
        let sink = JournaldSink::new(config, Path::new(JOURNAL_SOCKET));
        sinks.push(Box::new(sink.map_err(|error| format!("Failed to open journal {}", cause(&error)))?));
    }
    Ok(sinks)
}

fn cause(error: &LogError) -> String {
    error.io().map_or_else(|| error.to_string(), |source: &io::Error| strerror(source))
}
