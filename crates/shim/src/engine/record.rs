//! The exit record on disk.

use pintle_core::record::ExitRecord;
use pintle_sys::atomic::{Durability, write};
use std::io;
use std::path::Path;

/// Name of the exit record in a container's state directory.
pub const EXIT_FILE: &str = "exit.json";

/// Name of what is known at the moment of the reap; it becomes the record once the log is complete.
pub const ENDING_FILE: &str = "ending.json";

/// Notes the end before anything else is done about it, so that the loss of the shim in the next moments does not lose
/// the exit status.
///
/// # Errors
/// As writing a file in `dir`.
pub fn write_ending(dir: &Path, record: &ExitRecord) -> io::Result<()> {
    write(&dir.join(ENDING_FILE), &record.to_json(), 0o600, Durability::Visible)
}

/// Reads what a lost shim noted about the end.
pub fn read_ending(dir: &Path) -> Option<ExitRecord> {
    ExitRecord::from_json(&std::fs::read(dir.join(ENDING_FILE)).ok()?)
}

/// Writes the record; when this returns it survives a power cut.
///
/// # Errors
/// As creating, writing and syncing a file in `dir`.
pub fn write_exit_record(dir: &Path, record: &ExitRecord) -> io::Result<()> {
    write(&dir.join(EXIT_FILE), &record.to_json(), 0o600, Durability::Durable)?;
    match std::fs::remove_file(dir.join(ENDING_FILE)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Reads the record. `Ok(None)` if there is none yet.
///
/// # Errors
/// As reading a file; `InvalidData` if it is not a record this version understands.
pub fn read_exit_record(dir: &Path) -> io::Result<Option<ExitRecord>> {
    match std::fs::read(dir.join(EXIT_FILE)) {
        Ok(bytes) => ExitRecord::from_json(&bytes).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
