//! The programs under test and the programs that tests need.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The path of a program that the test needs.
///
/// # Panics
/// When it is not installed: a test that silently does nothing proves nothing.
#[track_caller]
pub fn require_tool(name: &str) -> PathBuf {
    find(name)
        .unwrap_or_else(|| panic!("{name} is not installed; cargo xtask packages installs what tests need"))
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|d| d.join(name))
        .find(|p| p.is_file())
}

/// Whether the full counts were asked for (`PINTLE_TEST_FULL=1`, `cargo xtask test --full`).
pub fn full() -> bool {
    std::env::var_os("PINTLE_TEST_FULL").is_some_and(|v| v == "1")
}

/// `full_count` when the full counts were asked for, `count` otherwise.
pub fn scaled(count: usize, full_count: usize) -> usize {
    if full() { full_count } else { count }
}

/// Whether the only cgroup tree is v2 with the memory controller.
pub fn is_cgroup2() -> bool {
    fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|c| c.split_whitespace().any(|c| c == "memory"))
}

/// The directory with the shim under all its names, and `pintle`.
///
/// `cargo xtask test` names it; a bare `cargo test` takes what the last `cargo build` made.
fn doors() -> &'static Path {
    static DOORS: OnceLock<PathBuf> = OnceLock::new();
    DOORS.get_or_init(|| {
        if let Some(dir) = std::env::var_os("PINTLE_DOORS") {
            return dir.into();
        }
        let exe = std::env::current_exe().expect("own path");
        // Test programs lie in `deps`, others beside it.
        let beside = exe.parent().expect("target directory");
        let deps = beside.file_name().is_some_and(|n| n == "deps");
        let built = if deps { beside.parent().expect("target directory") } else { beside };
        let dir = built.parent().expect("target directory").join("doors");
        fs::create_dir_all(&dir).expect("create target/doors");
        for (from, names) in [
            ("pintle-shim", &["pintle-shim", "conmon", "containerd-shim-pintle-v2"][..]),
            ("pintle", &["pintle"]),
        ] {
            let from = built.join(from);
            let Ok(new) = fs::metadata(&from) else {
                panic!("{} is missing; run cargo build first, or cargo xtask test", from.display())
            };
            for name in names {
                let to = dir.join(name);
                if fs::metadata(&to).is_ok_and(|old| old.ino() == new.ino()) {
                    continue;
                }
                let tmp = dir.join(format!(".{name}.{}", std::process::id()));
                let _ = fs::remove_file(&tmp);
                fs::hard_link(&from, &tmp)
                    .or_else(|_| fs::copy(&from, &tmp).map(|_| ()))
                    .and_then(|()| fs::rename(&tmp, &to))
                    .unwrap_or_else(|e| panic!("link {}: {e}", to.display()));
                let _ = fs::remove_file(&tmp);
            }
        }
        dir
    })
}

/// The program of that name as it will be installed.
///
/// # Panics
/// When it was not built.
pub fn door(name: &str) -> PathBuf {
    let path = doors().join(name);
    assert!(path.is_file(), "{} is missing; run cargo xtask doors", path.display());
    path
}

/// The shim under its own name.
pub fn shim() -> PathBuf {
    door("pintle-shim")
}

/// The shims to upgrade to and from: another build of this source, with the next state version, and, if the environment
/// variable `PINTLE_OLD_SHIM` names one, a shim of an older commit.
///
/// # Panics
/// When it was not built.
pub fn other_shims() -> (PathBuf, Option<PathBuf>) {
    (door("next/pintle-shim"), std::env::var_os("PINTLE_OLD_SHIM").map(PathBuf::from))
}

/// The shim as conmon.
pub fn conmon() -> PathBuf {
    door("conmon")
}

/// The shim as containerd's.
pub fn containerd_shim() -> PathBuf {
    door("containerd-shim-pintle-v2")
}

/// The command line.
pub fn pintle() -> PathBuf {
    door("pintle")
}

/// runc.
pub fn runc() -> PathBuf {
    require_tool("runc")
}

/// crun, or a wrapper by which it works on a machine with a hybrid cgroup tree.
///
/// crun takes `/sys/fs/cgroup/unified` of a hybrid tree for the place of its cgroups and fails there:
/// the wrapper unmounts it in a mount namespace of crun's own.
pub fn crun() -> PathBuf {
    static CRUN: OnceLock<PathBuf> = OnceLock::new();
    CRUN.get_or_init(|| {
        let real = require_tool("crun");
        if !Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
            return real;
        }
        require_tool("unshare");
        let dir = Path::new("/tmp").join(format!("pintle-crun-{}", nix::unistd::geteuid()));
        let _ = fs::create_dir_all(&dir);
        let path = dir.join("crun");
        let text = format!(
            "#!/bin/sh\nexec unshare --mount --propagation slave sh -c \
             'umount /sys/fs/cgroup/unified && exec {} \"$@\"' crun \"$@\"\n",
            real.display()
        );
        if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            write_program(&path, &text);
        }
        path
    })
    .clone()
}

/// The runtimes that a test of any runtime goes through, by name.
pub fn runtimes() -> Vec<(&'static str, PathBuf)> {
    vec![("runc", runc()), ("crun", crun())]
}

/// The criu that `cargo xtask newer` unpacked (the host's own may not start on this kernel).
///
/// None, after a notice that `cargo xtask test` counts, where apt has no newer one.
///
/// # Panics
/// In continuous integration, where it must be there.
pub fn newer_criu() -> Option<PathBuf> {
    let path = doors().parent()?.join("newer/criu");
    if path.is_file() {
        return Some(path);
    }
    let what = format!("{} is missing; cargo xtask newer unpacks it", path.display());
    assert!(std::env::var_os("CI").is_none(), "{what}");
    // Past libtest's capture, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr(), "notice: SKIPPED, {what}");
    None
}

/// Writes a script that may be executed at once.
///
/// Another thread's fork may hold the file open for writing for a moment, and executing it then fails
/// with ETXTBSY: so another process writes it.
pub(crate) fn write_program(path: &Path, text: &str) {
    let tmp = path.with_extension(format!("new{}", std::process::id()));
    let mut child = Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(&tmp)
        .stdin(Stdio::piped())
        .spawn()
        .expect("run sh");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("write a script");
    assert!(child.wait().expect("wait for sh").success(), "write {}", tmp.display());
    fs::rename(&tmp, path).unwrap_or_else(|e| panic!("rename {}: {e}", path.display()));
    let mode = fs::metadata(path).expect("script").permissions().mode();
    assert_eq!(mode & 0o111, 0o111);
}
