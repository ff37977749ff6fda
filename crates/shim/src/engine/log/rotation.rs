//! Changing the file under a log path: all renames in one open directory, never by a path that can change meanwhile.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, geteuid, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Mode of log files under the umask 0022.
const MODE: Mode = Mode::from_bits_truncate(0o640);

/// Device and inode.
pub(super) fn id(stat: &FileStat) -> (u64, u64) {
    // Their types differ between architectures.
    #[allow(clippy::unnecessary_cast)]
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// Opens a log file for appending, creating it if need be.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    Ok(open(path, flags, MODE)?.into())
}

/// A log file's place: the open directory and the name in it.
pub(super) struct Place {
    dir: OwnedFd,
    name: OsString,
}

impl Place {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?.to_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { dir: open(parent, flags, Mode::empty())?, name })
    }

    /// What the name stands for now, without following a link; `None` if nothing.
    pub(super) fn stat(&self) -> io::Result<Option<FileStat>> {
        match fstatat(&self.dir, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes the file, which must not exist, with owner and mode of the old one.
    pub(super) fn create(&self, old: &File) -> io::Result<File> {
        let file = self.create_named(&self.name, old)?;
        Ok(file)
    }

    /// Opens the file that somebody else has put there.
    pub(super) fn open_existing(&self) -> io::Result<File> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = File::from(openat(&self.dir, self.name.as_os_str(), flags, Mode::empty())?);
        if SFlag::from_bits_truncate(fstat(&file)?.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
            return Err(Errno::EINVAL.into());
        }
        Ok(file)
    }

    /// Puts an empty file in the place of the current one in one step.
    pub(super) fn replace(&self, old: &File) -> io::Result<File> {
        let (temp, file) = self.create_temp(old)?;
        if let Err(errno) = renameat(&self.dir, temp.as_os_str(), &self.dir, self.name.as_os_str()) {
            let _ = unlinkat(&self.dir, temp.as_os_str(), UnlinkatFlags::NoRemoveDir);
            return Err(errno.into());
        }
        Ok(file)
    }

    /// Shifts `NAME.1` to `NAME.2` and so on, keeping `keep` of them, makes the current file `NAME.1`, and puts an empty
    /// one in its place. The new file is made first: without room for it nothing is shifted.
    pub(super) fn rotate(&self, old: &File, keep: u32) -> io::Result<File> {
        let (temp, file) = self.create_temp(old)?;
        let shifted = (|| -> Result<(), Errno> {
            for n in (1..keep).rev() {
                match self.shift(&self.backup(n), &self.backup(n + 1)) {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
            self.shift(&self.name, &self.backup(1))?;
            renameat(&self.dir, temp.as_os_str(), &self.dir, self.name.as_os_str()).inspect_err(|_| {
                // Nothing may be missing under the name that readers know.
                let _ = renameat(&self.dir, &*self.backup(1), &self.dir, self.name.as_os_str());
            })
        })();
        if let Err(errno) = shifted {
            let _ = unlinkat(&self.dir, temp.as_os_str(), UnlinkatFlags::NoRemoveDir);
            return Err(errno.into());
        }
        Ok(file)
    }

    /// Renames within the directory, and removes first what has the new name: where a rename replaces a file, ext4 sends all
    /// of the renamed one to the disk before it returns (its `auto_da_alloc`). Here that would be the whole of a log
    /// which may be gone before the disk ever needed to see it, and the container would wait for it.
    fn shift(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        fstatat(&self.dir, from, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        match unlinkat(&self.dir, to, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        renameat(&self.dir, from, &self.dir, to)
    }

    fn backup(&self, n: u32) -> OsString {
        let mut name = self.name.clone();
        name.push(format!(".{n}"));
        name
    }

    /// A dot in front keeps the name out of the patterns (`NAME.*`) by which others delete and count old logs.
    fn create_temp(&self, old: &File) -> io::Result<(OsString, File)> {
        let mut temp = OsString::from(".");
        temp.push(&self.name);
        temp.push(".pintle-new");
        // What a crashed predecessor left would block rotation for ever.
        let _ = unlinkat(&self.dir, temp.as_os_str(), UnlinkatFlags::NoRemoveDir);
        let file = self.create_named(&temp, old)?;
        Ok((temp, file))
    }

    fn create_named(&self, name: &OsStr, old: &File) -> io::Result<File> {
        let flags = OFlag::O_WRONLY
            | OFlag::O_APPEND
            | OFlag::O_CREAT
            | OFlag::O_EXCL
            | OFlag::O_CLOEXEC
            | OFlag::O_NOFOLLOW;
        let file = File::from(openat(&self.dir, name, flags, MODE)?);
        let kept = (|| -> Result<(), Errno> {
            let (was, is) = (fstat(old)?, fstat(&file)?);
            if (was.st_uid, was.st_gid) != (is.st_uid, is.st_gid) {
                // Not permitted without privileges; the log matters more than its owner.
                let _ = fchown(&file, Some(Uid::from_raw(was.st_uid)), Some(Gid::from_raw(was.st_gid)));
            }
            if was.st_mode != is.st_mode {
                fchmod(&file, Mode::from_bits_truncate(was.st_mode))?;
            }
            Ok(())
        })();
        if let Err(errno) = kept {
            let _ = unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir);
            return Err(errno.into());
        }
        Ok(file)
    }

    /// Whether a log that vanished may be made anew during a rotation: only in a directory that others cannot prepare.
    pub(super) fn check_trusted(&self, path: &Path, allow: &[PathBuf]) -> Result<(), &'static str> {
        let stat = fstat(&self.dir).map_err(|_| "its directory cannot be examined")?;
        if stat.st_mode & 0o002 != 0 {
            return Err("its directory is writable for everybody");
        }
        if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
            return Err("its directory belongs to somebody else");
        }
        let parent = path.parent().unwrap_or(Path::new("."));
        let real = parent.canonicalize().map_err(|_| "its directory cannot be resolved")?;
        if parent.is_absolute() && real != parent {
            return Err("its directory is reached through a symbolic link");
        }
        if !allow.is_empty()
            && !allow.iter().any(|dir| dir.canonicalize().is_ok_and(|dir| real.starts_with(dir)))
        {
            return Err("its directory is in none of the allowed ones");
        }
        Ok(())
    }
}
