//! Mounting and unmounting a container's root file system.
//!
//! A mount may take long, or for ever where a network file system does not answer: it is made in a thread of its own, which
//! ends with it, while the shim goes on serving its other containers.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use pintle_proto::containerd::task::Mount;

use super::error::{Result, TaskError};
use crate::engine::reap::Reaper;

/// Options of a mount in the words of fstab.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parsed {
    flags: MsFlags,
    propagation: MsFlags,
    data: Vec<String>,
    loop_device: bool,
}

fn parse(options: &[String]) -> Parsed {
    let mut out = Parsed {
        flags: MsFlags::empty(),
        propagation: MsFlags::empty(),
        data: Vec::new(),
        loop_device: false,
    };
    for option in options {
        let (flag, on) = match option.as_str() {
            "" | "defaults" => continue,
            "loop" => {
                out.loop_device = true;
                continue;
            }
            "bind" => (MsFlags::MS_BIND, true),
            "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, true),
            "ro" => (MsFlags::MS_RDONLY, true),
            "rw" => (MsFlags::MS_RDONLY, false),
            "nosuid" => (MsFlags::MS_NOSUID, true),
            "suid" => (MsFlags::MS_NOSUID, false),
            "nodev" => (MsFlags::MS_NODEV, true),
            "dev" => (MsFlags::MS_NODEV, false),
            "noexec" => (MsFlags::MS_NOEXEC, true),
            "exec" => (MsFlags::MS_NOEXEC, false),
            "sync" => (MsFlags::MS_SYNCHRONOUS, true),
            "async" => (MsFlags::MS_SYNCHRONOUS, false),
            "dirsync" => (MsFlags::MS_DIRSYNC, true),
            "remount" => (MsFlags::MS_REMOUNT, true),
            "mand" => (MsFlags::MS_MANDLOCK, true),
            "nomand" => (MsFlags::MS_MANDLOCK, false),
            "noatime" => (MsFlags::MS_NOATIME, true),
            "atime" => (MsFlags::MS_NOATIME, false),
            "nodiratime" => (MsFlags::MS_NODIRATIME, true),
            "diratime" => (MsFlags::MS_NODIRATIME, false),
            "relatime" => (MsFlags::MS_RELATIME, true),
            "norelatime" => (MsFlags::MS_RELATIME, false),
            "strictatime" => (MsFlags::MS_STRICTATIME, true),
            "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
            word => {
                let propagation = match word {
                    "shared" => MsFlags::MS_SHARED,
                    "rshared" => MsFlags::MS_SHARED | MsFlags::MS_REC,
                    "slave" => MsFlags::MS_SLAVE,
                    "rslave" => MsFlags::MS_SLAVE | MsFlags::MS_REC,
                    "private" => MsFlags::MS_PRIVATE,
                    "rprivate" => MsFlags::MS_PRIVATE | MsFlags::MS_REC,
                    "unbindable" => MsFlags::MS_UNBINDABLE,
                    "runbindable" => MsFlags::MS_UNBINDABLE | MsFlags::MS_REC,
                    _ => {
                        out.data.push(word.to_owned());
                        continue;
                    }
                };
                out.propagation |= propagation;
                continue;
            }
        };
        out.flags.set(flag, on);
    }
    out
}

/// The kernel takes one page of options, its last byte a zero.
const MAX_DATA: usize = 4095;

/// Layers of an overlay named relative to a directory, where all of them lie below one: a list of many layers does
/// not fit in a page otherwise. The second value is the directory.
fn shorten(data: &[String]) -> Option<(String, PathBuf)> {
    let at = data.iter().position(|o| o.starts_with("lowerdir="))?;
    let layers: Vec<&str> = data[at].strip_prefix("lowerdir=")?.split(':').collect();
    let mut common: Vec<&str> = layers.first()?.split('/').collect();
    for layer in &layers {
        let same = common.iter().zip(layer.split('/')).take_while(|(a, b)| **a == *b).count();
        common.truncate(same);
    }
    if common.len() < 2 || common.first() != Some(&"") {
        return None;
    }
    let prefix = common.join("/") + "/";
    let mut short = Vec::with_capacity(layers.len());
    for layer in layers {
        short.push(layer.strip_prefix(prefix.as_str()).filter(|l| !l.is_empty())?);
    }
    let mut out: Vec<String> = data.to_vec();
    out[at] = format!("lowerdir={}", short.join(":"));
    Some((out.join(","), PathBuf::from(prefix)))
}

/// Stack of a mounting thread: paths and the table of mounts are on the heap.
const STACK: usize = 256 * 1024;

/// Runs what may block in a thread of its own, to its end also where nobody waits for it any more.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (give, answer) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("mount".to_owned()).stack_size(STACK);
    thread.spawn(move || drop(give.send(work())))?;
    answer.await.map_err(|_| io::Error::other("the mounting thread has failed"))
}

/// Mounts all of a root file system; on failure what was mounted is taken back.
pub(super) async fn mount_all(mounts: &[Mount], rootfs: PathBuf, reaper: &Reaper) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    match fs::DirBuilder::new().mode(0o711).create(&rootfs) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(TaskError::io(format!("create {}", rootfs.display()), e));
        }
        _ => {}
    }
    for entry in mounts {
        if let Err(error) = mount_one(entry, &rootfs, reaper).await {
            let _ = unmount_all(rootfs).await;
            return Err(error);
        }
    }
    Ok(())
}

/// Unmounts everything at and below `rootfs`, innermost first. Nothing mounted is success.
pub(super) async fn unmount_all(rootfs: PathBuf) -> io::Result<()> {
    if mounted_below(&rootfs)?.is_empty() {
        return Ok(());
    }
    apart(move || unmount_now(&rootfs)).await?
}

async fn mount_one(entry: &Mount, rootfs: &Path, reaper: &Reaper) -> Result<()> {
    let below = entry.target.trim_start_matches('/');
    if below.split('/').any(|part| part == "..") {
        return Err(TaskError::invalid(format!(
            "mount target {:?} leaves the root file system",
            entry.target
        )));
    }
    let target = if below.is_empty() { rootfs.to_path_buf() } else { rootfs.join(below) };
    let parsed = parse(&entry.options);
    let done = if parsed.loop_device {
        mount_loop(entry, &target, reaper).await
    } else {
        let (entry, target) = (entry.clone(), target.clone());
        apart(move || mount_now(&entry, &target, &parsed)).await.and_then(|done| done)
    };
    done.map_err(|e| {
        TaskError::unknown(format!(
            "failed to mount rootfs component {:?} of type {:?} on {}: {e}",
            entry.source,
            entry.type_,
            target.display()
        ))
    })
}

/// In a thread that ends afterwards.
fn mount_now(entry: &Mount, target: &Path, parsed: &Parsed) -> io::Result<()> {
    let mut data = parsed.data.join(",");
    if data.len() > MAX_DATA && entry.type_ == "overlay" {
        if let Some((short, directory)) = shorten(&parsed.data) {
            // A working directory of this thread's own, from here to its end.
            unshare(CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(&directory)?;
            data = short;
        }
    }
    Ok(mount_flags(entry, target, parsed, &data)?)
}

fn mount_flags(entry: &Mount, target: &Path, parsed: &Parsed, data: &str) -> nix::Result<()> {
    let kind = if entry.type_ == "bind" { None } else { Some(entry.type_.as_str()) };
    let mut flags = parsed.flags;
    if entry.type_ == "bind" {
        flags |= MsFlags::MS_BIND;
    }
    if data.len() > MAX_DATA {
        return Err(Errno::E2BIG);
    }
    let data = if data.is_empty() { None } else { Some(data) };
    let source = Some(entry.source.as_str()).filter(|s| !s.is_empty());
    mount(source, target, kind, flags, data)?;
    // The kernel ignores further flags of a bind mount at first.
    let beyond = flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
    if flags.contains(MsFlags::MS_BIND) && !beyond.is_empty() {
        mount(None::<&str>, target, None::<&str>, flags | MsFlags::MS_REMOUNT, None::<&str>)?;
    }
    if !parsed.propagation.is_empty() {
        mount(None::<&str>, target, None::<&str>, parsed.propagation, None::<&str>)?;
    }
    Ok(())
}

/// Images on loop devices are left to mount(8), which frees the device with the mount. A process that the reaper knows: it
/// takes the end of every child.
async fn mount_loop(entry: &Mount, target: &Path, reaper: &Reaper) -> io::Result<()> {
    let (words, says) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let mut command = Command::new("mount");
    command.args(["-t", &entry.type_, "-o", &entry.options.join(","), "--", &entry.source]).arg(target);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(says);
    let child = reaper.spawn(&mut command)?;
    drop(command);
    if child.exit.wait().await.success() {
        return Ok(());
    }
    // What is there, not to its end: a helper may hold it open.
    let mut buffer = [0; 4096];
    let n = nix::unistd::read(&words, &mut buffer).unwrap_or(0);
    Err(io::Error::other(String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).trim().to_owned()))
}

/// As [`unmount_all`], in this thread.
pub(super) fn unmount_now(rootfs: &Path) -> io::Result<()> {
    for point in mounted_below(rootfs)? {
        match umount2(&point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(_) => match umount2(&point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(e) => return Err(e.into()),
            },
        }
    }
    Ok(())
}

/// Mount points at and below a directory, innermost first.
fn mounted_below(rootfs: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // Unless it is a link, only the directory above is looked at: a mount might wait for its file system.
    let real = match (rootfs.parent(), rootfs.file_name()) {
        (Some(parent), Some(name)) if fs::read_link(rootfs).is_err() => {
            fs::canonicalize(parent).map(|parent| parent.join(name))
        }
        _ => fs::canonicalize(rootfs),
    };
    let real = real.unwrap_or_else(|_| rootfs.to_path_buf());
    let mut points: Vec<PathBuf> =
        table.lines().filter_map(mount_point).filter(|p| p.starts_with(&real)).collect();
    // A mount point is listed once for each mount stacked on it, later ones last.
    points.reverse();
    points.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    Ok(points)
}

fn mount_point(line: &str) -> Option<PathBuf> {
    let escaped = line.split(' ').nth(4)?;
    let mut out = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.bytes();
    while let Some(b) = bytes.next() {
        if b != b'\\' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().filter(|d| (b'0'..=b'7').contains(d)).map(|d| u32::from(d - b'0'));
        let value = digit()? * 64 + digit()? * 8 + digit()?;
        out.push((value & 0xff) as u8);
    }
    use std::os::unix::ffi::OsStringExt as _;
    Some(PathBuf::from(std::ffi::OsString::from_vec(out)))
}

/// Options of a mount, separated by commas, and a line of the table of mounts.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let words: Vec<String> = text.split(',').map(str::to_owned).collect();
    let parsed = parse(&words);
    assert!(parsed.data.iter().all(|word| words.contains(word)));
    if let Some((short, directory)) = shorten(&words) {
        assert!(short.len() < words.join(",").len() && directory.is_absolute());
    }
    let _ = mount_point(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn fstab_words() {
        let p = parse(&words("rbind,ro,nosuid,rprivate,size=4k,rw"));
        assert_eq!(p.flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_NOSUID);
        assert_eq!(p.propagation, MsFlags::MS_PRIVATE | MsFlags::MS_REC);
        assert_eq!(p.data, ["size=4k"]);
        assert!(parse(&words("loop,ro")).loop_device);
    }

    #[test]
    fn overlays_with_many_layers_are_shortened() {
        let data = words("workdir=/w,lowerdir=/s/snap/12/fs:/s/snap/11/fs,upperdir=/u");
        let (short, directory) = shorten(&data).unwrap();
        assert_eq!(short, "workdir=/w,lowerdir=12/fs:11/fs,upperdir=/u");
        assert_eq!(directory, Path::new("/s/snap/"));
        assert_eq!(shorten(&words("lowerdir=/a:/b,upperdir=/u")), None);
        assert_eq!(shorten(&words("lowerdir=/a/b:/a/b,upperdir=/u")), None);
        assert_eq!(shorten(&words("size=1")), None);
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(mount_point("1 2 0:3 / /a\\040b rw - tmpfs t rw"), Some(PathBuf::from("/a b")));
        assert_eq!(mount_point("short"), None);
    }
}
