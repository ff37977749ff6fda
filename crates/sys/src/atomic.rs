//! Files that are there whole or not at all, also after a power cut.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// How much a write promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Atomic for readers; may be lost by a power cut.
    Visible,
    /// Atomic and on disk before the call returns (file and directory are synced).
    Durable,
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Puts `bytes` under `path`: temporary file in the same directory, then rename. The temporary name starts with a
/// dot, so that watchers and log rotators do not take it for the file.
///
/// # Errors
/// Any error of open, write, sync or rename; the temporary file is removed then and the old file stays.
pub fn write(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut temp_name = OsString::from(".");
    temp_name.push(name);
    temp_name.push(format!(".{}.{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let temp = dir.join(temp_name);
    let result = write_temp(&temp, bytes, mode, durability)
        .and_then(|()| std::fs::rename(&temp, path))
        .and_then(|()| if durability == Durability::Durable { File::open(&dir)?.sync_all() } else { Ok(()) });
    if result.is_err() {
        // Nothing is left behind; the error that matters is the first one.
        let _ = std::fs::remove_file(&temp);
    }
    result
}

fn write_temp(temp: &Path, bytes: &[u8], mode: u32, durability: Durability) -> io::Result<()> {
    // A left-over of a killed process with the same pid is replaced, never followed.
    let _ = std::fs::remove_file(temp);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW)
        .open(temp)?;
    file.write_all(bytes)?;
    if durability == Durability::Durable {
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn whole_or_nothing() {
        let dir = std::env::temp_dir().join(format!("pintle-atomic-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("exit.json");
        write(&path, b"one", 0o600, Durability::Durable).unwrap();
        write(&path, b"two", 0o640, Durability::Visible).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(write(&dir.join("no/such/dir"), b"x", 0o600, Durability::Visible).is_err());
        // A directory in the way: the rename fails and the temporary file goes.
        std::fs::create_dir(dir.join("d")).unwrap();
        assert!(write(&dir.join("d"), b"x", 0o600, Durability::Visible).is_err());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
