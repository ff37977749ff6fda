//! The files of one log: the current one, `NAME`, and those that were rotated away, `NAME.1` (the newest) and so on, or
//! with a date in their names as kubelet and logrotate give them.
//!
//! Files are told by device and inode and held open: a file that is held is not lost when it is renamed or removed, and
//! its inode is not given to another one. How that stays right while somebody rotates is in
//! [adr 39](../../../../docs/adr/0039-following-a-log.md).

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::watch::{Generation, Watch};

/// How often a look is taken again because the log was rotated meanwhile.
const TRIES: usize = 100;

/// An open file of a log.
pub(super) struct LogFile {
    pub(super) file: File,
    /// Where it was found.
    pub(super) path: PathBuf,
    id: (u64, u64),
    generation: Option<Generation>,
    /// Its number when it was last seen; it only grows. 0 for the current file.
    number: Cell<u64>,
}

impl LogFile {
    /// Opens a regular file; None if there is none.
    fn open(path: PathBuf) -> io::Result<Option<Self>> {
        // O_NONBLOCK: a FIFO in its place must not hold us.
        let file = match OpenOptions::new().read(true).custom_flags(0o4000).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(None);
        }
        Ok(Some(Self { file, path, id: (meta.dev(), meta.ino()), generation: None, number: Cell::new(0) }))
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Whether it came after the other one; also if that was not counted.
    pub(super) fn is_behind(&self, other: &Self) -> bool {
        match (self.generation, other.generation) {
            _ if self.is(other) => false,
            (Some(this), Some(other)) => this.since(other).is_none_or(|n| n > 0),
            _ => other.file.metadata().is_ok_and(|m| m.nlink() == 0),
        }
    }

    /// Whether it stands at this path.
    fn stands_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id)
    }

    /// It was not written to before the other one was.
    fn is_younger(&self, other: &Self) -> bool {
        let time = |file: &File| file.metadata().map(|m| (m.mtime(), m.mtime_nsec())).ok();
        time(&self.file) >= time(&other.file)
    }
}

/// Files that are missing between one that was read and the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Files(u64),
    /// Nobody counted the rotations.
    Unknown,
}

/// What comes after a file.
pub(super) struct Next {
    pub(super) file: LogFile,
    pub(super) missing: Missing,
}

/// The files of a log in their order.
pub(super) struct Chain {
    dir: PathBuf,
    name: OsString,
}

impl Chain {
    /// The chain that ends at this path.
    pub(super) fn new(path: &Path) -> Result<Self> {
        // Rotation happens beside the file, not beside a link to it.
        let path = path.canonicalize().with_context(|| format!("open log {}", path.display()))?;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("log {} is not a file", path.display())
        };
        Ok(Self { dir: dir.to_path_buf(), name: name.to_owned() })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    fn path(&self, number: u64) -> PathBuf {
        if number == 0 {
            return self.dir.join(&self.name);
        }
        let mut name = self.name.clone();
        name.push(format!(".{number}"));
        self.dir.join(name)
    }

    fn open(&self, number: u64) -> io::Result<Option<LogFile>> {
        let file = LogFile::open(self.path(number))?;
        Ok(file.inspect(|file| file.number.set(number)))
    }

    /// The highest number, 0 if none, and the names with a date, oldest first.
    fn names(&self) -> io::Result<(u64, Vec<PathBuf>)> {
        let (mut last, mut dated) = (0, Vec::new());
        for entry in std::fs::read_dir(&self.dir)?.flatten() {
            match entry.file_name().as_bytes().strip_prefix(self.name.as_bytes()).and_then(kind) {
                Some(Rotated::Number(n)) => last = last.max(n),
                Some(Rotated::Date) => dated.push(entry.path()),
                None => {}
            }
        }
        dated.sort();
        Ok((last, dated))
    }

    /// The current file.
    pub(super) fn current(&self, watch: &mut Watch) -> Result<LogFile> {
        let mut open = || -> io::Result<Option<LogFile>> {
            for _ in 0..TRIES {
                // Between two renames of a rotation there is none.
                let Some(mut file) = self.open(0)? else { continue };
                // The kernel tells of a rename while it holds the directory: after a look into it, all is told
                // that led to the file that we have.
                self.names()?;
                watch.read();
                let generation = watch.generation();
                if file.stands_at(&self.path(0)) {
                    file.generation = generation;
                    return Ok(Some(file));
                }
            }
            self.open(0)
        };
        let path = self.path(0);
        match open().with_context(|| format!("open log {}", path.display()))? {
            Some(file) => Ok(file),
            None => bail!("log {} is not a file", path.display()),
        }
    }

    /// The oldest file.
    pub(super) fn oldest(&self, watch: &mut Watch) -> Result<LogFile> {
        let open = || -> io::Result<Option<LogFile>> {
            let (last, dated) = self.names()?;
            for path in dated {
                if let Some(file) = LogFile::open(path)? {
                    return Ok(Some(file));
                }
            }
            for number in (1..=last.saturating_add(2)).rev() {
                if let Some(mut file) = self.open(number)? {
                    // Others were shifted beyond it, if the log was rotated since we looked.
                    while let Some(older) = self.older(&file)? {
                        file = older;
                    }
                    return Ok(Some(file));
                }
            }
            Ok(None)
        };
        match open().with_context(|| format!("read {}", self.dir.display()))? {
            Some(file) => Ok(file),
            None => self.current(watch),
        }
    }

    /// The file before this one.
    pub(super) fn older(&self, of: &LogFile) -> io::Result<Option<LogFile>> {
        for _ in 0..TRIES {
            let (last, dated) = self.names()?;
            let Some(number) = self.number(of, last) else {
                if let Some(at) = dated.iter().position(|path| of.stands_at(path)) {
                    return at.checked_sub(1).map_or(Ok(None), |at| LogFile::open(dated[at].clone()));
                }
                if of.file.metadata()?.nlink() == 0 {
                    return Ok(None);
                }
                // It was shifted beyond the numbers that we knew.
                continue;
            };
            // In the middle of a rotation one number is free.
            for older in [number + 1, number + 2] {
                if let Some(file) = self.open(older)? {
                    if of.stands_at(&self.path(number)) && !of.is(&file) {
                        return Ok(Some(file));
                    }
                    break;
                }
            }
            if of.stands_at(&self.path(number)) && number >= last {
                return dated.last().map_or(Ok(None), |path| LogFile::open(path.clone()));
            }
        }
        Ok(None)
    }

    /// What follows this file; None as long as it is the current one, and while there is no current one.
    pub(super) fn next(&self, of: &LogFile, watch: &mut Watch) -> io::Result<Option<Next>> {
        let here = self.path(0);
        for _ in 0..TRIES {
            if of.stands_at(&here) || !here.exists() {
                return Ok(None);
            }
            let (last, dated) = self.names()?;
            if let Some(file) = self.follower(of, last, &dated)? {
                let generation = of.generation.map(|g| g.plus(1));
                return Ok(Some(Next { file: LogFile { generation, ..file }, missing: Missing::Files(0) }));
            }
            if let Some(next) = self.beyond(of, watch)? {
                return Ok(Some(next));
            }
        }
        // Rotated again and again while we looked: on with the current one.
        let Ok(file) = self.current(watch) else { return Ok(None) };
        let between = of.generation.zip(file.generation).and_then(|(old, new)| new.since(old));
        let missing = between.map_or(Missing::Unknown, |n| Missing::Files(n.saturating_sub(1)));
        Ok(Some(Next { file, missing }))
    }

    /// The number of a file, if it has one.
    fn number(&self, of: &LogFile, last: u64) -> Option<u64> {
        // Shifted while we look, it is still before us.
        let number = (of.number.get()..=last.saturating_add(2)).find(|n| of.stands_at(&self.path(*n)))?;
        of.number.set(number);
        Some(number)
    }

    /// The file that stands directly before one that still has a name.
    fn follower(&self, of: &LogFile, last: u64, dated: &[PathBuf]) -> io::Result<Option<LogFile>> {
        let Some(number) = self.number(of, last) else {
            let Some(at) = dated.iter().position(|path| of.stands_at(path)) else { return Ok(None) };
            if let Some(path) = dated.get(at + 1) {
                return LogFile::open(path.clone());
            }
            for number in (0..=last).rev() {
                if let Some(file) = self.open(number)? {
                    // Not if it was rotated away in between.
                    return Ok((self.names()?.1.len() == dated.len()).then_some(file));
                }
            }
            return Ok(None);
        };
        // In the middle of a rotation one number is free.
        for younger in [number.checked_sub(1), number.checked_sub(2)].into_iter().flatten() {
            if let Some(file) = self.open(younger)? {
                // It stood there before and after: what we opened meanwhile is its neighbour.
                return Ok(of.stands_at(&self.path(number)).then_some(file));
            }
        }
        Ok(None)
    }

    /// What follows a file that has no name any more, or one that is none of the log's. None if the log was rotated while
    /// we looked.
    fn beyond(&self, of: &LogFile, watch: &mut Watch) -> io::Result<Option<Next>> {
        let Some(current) = self.open(0)? else { return Ok(None) };
        // See `current`. The numbers are those of now: as long as this is the current file they grow by one at most.
        let (last, _) = self.names()?;
        watch.read();
        let newest = watch.generation();
        let between = newest.zip(of.generation).and_then(|(new, old)| new.since(old));
        // The files that came after it: as many as were counted, or those that were written to after it.
        let mut ids = vec![current.id];
        let mut oldest: Option<LogFile> = None;
        for number in 1..=last.saturating_add(1) {
            if between.is_some_and(|n| ids.len() as u64 >= n) {
                break;
            }
            match self.open(number)? {
                Some(file) if of.is(&file) => return Ok(None),
                Some(file) if ids.contains(&file.id) => {}
                Some(file) if between.is_none() && !file.is_younger(of) => break,
                Some(file) => {
                    ids.push(file.id);
                    oldest = Some(file);
                }
                None => {}
            }
        }
        watch.read();
        if !current.stands_at(&self.path(0)) || watch.generation() != newest {
            return Ok(None);
        }
        let count = ids.len() as u64;
        let file = oldest.unwrap_or(current);
        let missing = between.map_or(Missing::Unknown, |n| Missing::Files(n.saturating_sub(count)));
        let generation = newest.map(|g| g.plus(1 - count as i64));
        Ok(Some(Next { file: LogFile { generation, ..file }, missing }))
    }

    /// Whether more files came after this one than can be found, because the log itself is gone.
    pub(super) fn gone(&self, of: &LogFile, watch: &mut Watch) -> Missing {
        watch.read();
        if self.path(0).exists() {
            return Missing::Files(0);
        }
        match (watch.generation(), of.generation) {
            (Some(new), Some(old)) => new.since(old).map_or(Missing::Unknown, Missing::Files),
            _ => Missing::Files(0),
        }
    }

    /// A copy of a file that was emptied since: a file beside it that has `mark` before `at`.
    pub(super) fn copy(&self, at: u64, mark: &[u8]) -> io::Result<Option<LogFile>> {
        for entry in std::fs::read_dir(&self.dir)?.flatten() {
            let name = entry.file_name();
            if name == self.name || !name.as_bytes().starts_with(self.name.as_bytes()) {
                continue;
            }
            let Ok(Some(file)) = LogFile::open(entry.path()) else { continue };
            let mut bytes = vec![0; mark.len()];
            let from = at.saturating_sub(mark.len() as u64);
            if file.file.read_exact_at(&mut bytes, from).is_ok() && bytes == mark {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Rotated {
    /// `.N`: ours, and logrotate's.
    Number(u64),
    /// `.YYYYMMDD-HHMMSS`: kubelet's; `-YYYYMMDD` and more: logrotate's.
    Date,
}

/// What the rest of a name behind that of the log says. Compressed files are none of them.
fn kind(suffix: &[u8]) -> Option<Rotated> {
    let (sep, rest) = suffix.split_first()?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    if matches!(sep, b'.' | b'-') && digits >= 8 && rest.iter().all(|b| b.is_ascii_digit() || *b == b'-') {
        return Some(Rotated::Date);
    }
    if *sep != b'.' || digits != rest.len() || rest.first() == Some(&b'0') {
        return None;
    }
    std::str::from_utf8(rest).ok()?.parse().ok().map(Rotated::Number)
}

#[cfg(test)]
mod tests;
