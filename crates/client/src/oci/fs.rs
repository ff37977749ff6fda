//! Files: reading with a limit, writing so that readers see the old or the new text.

use super::error::Error;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Reads a file of at most `size` bytes. A longer one is **truncated on disk** to `size` first.
///
/// # Errors
/// Those of looking at, truncating and reading the file.
pub fn truncate_and_read(path: impl AsRef<Path>, size: u64) -> Result<Vec<u8>, Error> {
    let path = path.as_ref();
    let io = |what| move |source| Error::Io { what, path: path.to_path_buf(), source };
    let have = fs::metadata(path).map_err(io("looking at"))?.len();
    if have > size {
        tracing::error!(
            "output in file {} has size {have} which is longer than expected size of {size}",
            path.display()
        );
        let file = OpenOptions::new().write(true).open(path);
        file.and_then(|f| f.set_len(size)).map_err(io("truncating"))?;
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io("reading"))?;
    // The file may have grown since: the limit holds all the same.
    file.take(size).read_to_end(&mut bytes).map_err(io("reading"))?;
    Ok(bytes)
}

/// Replaces a file: temporary file in the same directory, synced, renamed over it.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    let serial = NEXT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{serial}.tmp", std::process::id()));
    let temporary = dir.join(temporary);
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        if let Ok(dir) = File::open(dir) {
            dir.sync_all()?;
        }
        Ok(())
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four_bytes(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("pintle-{name}-{}", std::process::id()));
        fs::write(&path, "1234").unwrap();
        path
    }

    #[test]
    fn truncate_and_read_below_the_limit() {
        let path = four_bytes("tr5");
        assert_eq!(truncate_and_read(&path, 5).unwrap(), b"1234");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn truncate_and_read_at_the_limit() {
        let path = four_bytes("tr4");
        assert_eq!(truncate_and_read(&path, 4).unwrap(), b"1234");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn truncate_and_read_above_the_limit() {
        let path = four_bytes("tr3");
        assert_eq!(truncate_and_read(&path, 3).unwrap(), b"123");
        assert_eq!(fs::read(&path).unwrap(), b"123");
        fs::remove_file(path).unwrap();
        assert!(truncate_and_read("/nowhere", 3).is_err());
    }
}
