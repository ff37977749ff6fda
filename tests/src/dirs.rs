//! Directories and names that no other test uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::leftovers::Leftovers;
use crate::wait::DEADLINE;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container id that no other test uses: `pt` + what it is for + process + number.
pub fn unique_id(tag: &str) -> String {
    // The letter at the end keeps an id from being the beginning of another one.
    format!("pt{tag}{}x{}z", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A directory of one test, with a short path (Unix sockets end at 107 bytes), removed on drop, when nothing that
/// belongs to it may be left: no process, zombie, mount, cgroup, socket, runtime state.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    patience: Duration,
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
        Self { path, patience: DEADLINE }
    }

    /// How long at its end what belongs to it may take to go; [`DEADLINE`] by default.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
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
        // Everything that carries the path or an id of a directory below must be gone; a failed test has said enough.
        let mut words = Leftovers::of(self.path.to_string_lossy());
        let mut left = Vec::new();
        if !std::thread::panicking() {
            for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("pt") && name.ends_with('z') {
                    words = words.and(name);
                }
            }
            left = words.settle(self.patience);
        }
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
        if !left.is_empty() {
            words.kill();
            panic!("the test leaves\n{}", left.join("\n"));
        }
    }
}
