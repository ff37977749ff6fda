//! The logs a container asks for.

use super::failure::{Failure, FailureKind};
use super::hub::Hub;
use super::log::{FileConfig, FileSink, JOURNAL_SOCKET, JournaldSink, LogError, LogSink, RateSink};
use super::spec::LogSpec;
use pintle_core::journal::JournalConfig;
use pintle_core::rate::RateLimits;
use pintle_core::rotate::SizeLimits;
use std::path::Path;

/// Opens the logs and gives them to the hub.
///
/// # Errors
/// If one cannot be opened; the ones before it stay with the hub.
pub fn add_sinks(hub: &Hub, id: &str, logs: &[LogSpec]) -> Result<(), Failure> {
    for log in logs {
        let limits = RateLimits { bytes: log.max_bytes_per_second, lines: log.max_lines_per_second };
        match open(id, log)? {
            Some(sink) if limits.is_none() => hub.add_sink(sink),
            Some(sink) => hub.add_sink(Box::new(RateSink::new(sink, limits, log.drop_over_rate))),
            None => {}
        }
    }
    Ok(())
}

fn open(id: &str, log: &LogSpec) -> Result<Option<Box<dyn LogSink>>, Failure> {
    match log.driver.as_str() {
        "none" => Ok(None),
        "journald" => {
            let text = |text: &str| Some(text.as_bytes().to_vec()).filter(|t| !t.is_empty());
            let config = JournalConfig {
                id: id.as_bytes().to_vec(),
                name: text(&log.name).or_else(|| text(id)),
                tag: text(&log.tag),
                labels: log.labels.iter().map(|l| l.as_bytes().to_vec()).collect(),
                no_partial_marker: false,
                priority_prefix: false,
            };
            let sink = JournaldSink::new(config, Path::new(JOURNAL_SOCKET));
            Ok(Some(Box::new(sink.map_err(|e| failure(Path::new(JOURNAL_SOCKET), &e))?)))
        }
        _ => {
            let config = FileConfig {
                path: log.path.clone(),
                limits: SizeLimits { file: log.max_size, total: log.global_max_size },
                max_files: Some(log.max_files).filter(|n| *n > 0),
                json: log.driver == "json-file",
                close_partial: log.close_partial,
                ..FileConfig::default()
            };
            let sink = FileSink::open(config).map_err(|e| failure(&log.path, &e))?;
            Ok(Some(Box::new(sink)))
        }
    }
}

/// A log error as an answer to a client.
pub fn failure(path: &Path, error: &LogError) -> Failure {
    let errno = error.io().and_then(std::io::Error::raw_os_error).unwrap_or(0);
    let cause = error.io().map(|e| format!(": {e}")).unwrap_or_default();
    let message = format!("{error}{cause}");
    Failure { errno, ..Failure::new(FailureKind::System, path.display().to_string(), message) }
}
