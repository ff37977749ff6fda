//! Directories and names that no other test uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container id that no other test uses: `pt` + what it is for + process + number.
pub fn unique_id(tag: &str) -> String {
    // The letter at the end keeps an id from being the beginning of another one.
    format!("pt{tag}{}x{}z", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A directory of one test, with a short path (Unix sockets end at 107 bytes), removed on drop.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Creates `/tmp/pt<tag><pid>x<n>`, mode 0700.
    ///
    /// # Panics
    /// When it cannot be created.
    pub fn new(tag: &str) -> Self {
        let path = Path::new("/tmp").join(unique_id(tag));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&path, mode).expect("set the mode of a temporary directory");
        Self { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in the directory.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A failed test may have left something mounted in here.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines().rev() {
            if let Some(at) = line.split(' ').nth(4) {
                if Path::new(at).starts_with(&self.path) {
                    let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
                }
            }
        }
        if std::env::var_os("PINTLE_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
