//! The k8s-file and json-file drivers: records, one write per chunk, reopening, size limits and rotation.

use super::rotation::{Place, id, open_log};
use super::{Chunk, LogError, LogSink, LossCause, Losses, SinkState, mismatch};
use pintle_core::cri;
use pintle_core::jsonlog;
use pintle_core::line::Stream;
use pintle_core::rotate::{SizeCounter, SizeLimits, Step};
use pintle_core::time::{STAMP_LEN, Stamper};
use pintle_core::wall::WallTime;
use pintle_sys::zone;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Bytes of one write, about: a full pipe of 80-byte lines is one write, and very short lines, which become many times as
/// long, do not grow the memory.
const WRITE: usize = 128 * 1024;

/// What reopening does while the path still leads to the current file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReopenPolicy {
    /// Go on with it; whoever watches the path sees a modification.
    #[default]
    Keep,
    /// Put an empty file in its place, as conmon does; the old content is gone.
    Replace,
}

/// How output becomes records.
#[derive(Clone, Debug)]
enum Format {
    /// CRI records.
    Cri,
    /// Docker's JSON objects.
    Json(jsonlog::Encoder),
}

impl Format {
    /// Bytes of output in these records.
    fn payload(&self, records: &[u8]) -> u64 {
        match self {
            Self::Cri => cri::payload(records).0,
            Self::Json(_) => jsonlog::payload(records),
        }
    }
}

/// A log file and its rules.
#[derive(Clone, Debug, Default)]
pub struct FileConfig {
    /// The file; created with mode 0640 less the umask.
    pub path: PathBuf,
    /// Limits of one file and of all that is ever written, with framing.
    pub limits: SizeLimits,
    /// At the file limit: `Some(n)` keeps n numbered files beside the current one, `None` truncates.
    pub max_files: Option<u32>,
    /// See [`ReopenPolicy`].
    pub reopen: ReopenPolicy,
    /// Docker's json-file format instead of CRI's.
    pub json: bool,
    /// CRI format: a line that the end of its stream cuts off, a `P` record, is closed by an empty `F` record.
    pub close_partial: bool,
    /// If not empty: directories in which a log that vanished may be made anew by rotation.
    pub allow_dirs: Vec<PathBuf>,
}

/// A log file.
#[derive(Debug)]
pub struct FileSink {
    config: FileConfig,
    format: Format,
    file: File,
    regular: bool,
    counter: SizeCounter,
    stamper: Stamper,
    /// The last record of each stream was a partial one.
    partial: [bool; 2],
    /// Lost since the last successful write.
    lost: Losses,
    /// The file ends within a record that could not be taken back.
    torn: bool,
}

impl FileSink {
    /// Opens the file. Its present size counts for both limits.
    ///
    /// # Errors
    /// [`LogError::Open`].
    pub fn open(config: FileConfig) -> Result<Self, LogError> {
        let file =
            open_log(&config.path).map_err(|source| LogError::Open { path: config.path.clone(), source })?;
        let meta = file.metadata().map_err(|source| LogError::Open { path: config.path.clone(), source })?;
        let size = if meta.is_file() { meta.len() } else { 0 };
        let format = if config.json { Format::Json(jsonlog::Encoder::new()) } else { Format::Cri };
        Ok(Self {
            config,
            format,
            file,
            regular: meta.is_file(),
            counter: SizeCounter { file: size, total: size },
            stamper: Stamper::new(),
            partial: [false; 2],
            lost: Losses::default(),
            torn: false,
        })
    }

    fn stamp(&mut self, now: WallTime) -> [u8; STAMP_LEN] {
        if self.stamper.is_stale(now) {
            *self.stamper.stamp(now, zone::utc_offset(now.secs))
        } else {
            *self.stamper.stamp_cached(now)
        }
    }

    /// Writes whole records within the limits.
    fn put(&mut self, records: &[u8], losses: &mut Losses) {
        if self.config.limits.is_none() || !self.regular {
            self.append(records, losses);
            return;
        }
        if let Ok(meta) = self.file.metadata() {
            // Somebody truncated the file (logrotate's copytruncate).
            self.counter.file = self.counter.file.min(meta.len());
        }
        let mut at = 0;
        while let Some(step) = self.config.limits.next_step(&self.counter, records, at) {
            match &step {
                Step::Write(range) => self.append(records.get(range.clone()).unwrap_or_default(), losses),
                // Failing, the log goes on in the old file and tries again after another fileful.
                Step::Rotate => self.rotate().unwrap_or_else(|error| {
                    tracing::warn!("{error}: {}", error.io().map(ToString::to_string).unwrap_or_default());
                }),
                Step::Drop(range) => {
                    let dropped = records.get(range.clone()).unwrap_or_default();
                    losses.add(LossCause::SizeLimit, self.format.payload(dropped));
                }
            }
            at = self.counter.apply(&step, at);
        }
    }

    /// Writes records, all or a whole number of them; the rest is counted as lost.
    fn append(&mut self, records: &[u8], losses: &mut Losses) {
        let mut rest = records;
        while !rest.is_empty() {
            match pintle_sys::bytes::write(self.file.as_fd(), rest) {
                Ok(0) => return self.lose(records, rest, &io::ErrorKind::WriteZero.into(), losses),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) => return self.lose(records, rest, &error, losses),
            }
        }
    }

    fn lose(&mut self, records: &[u8], unwritten: &[u8], error: &io::Error, losses: &mut Losses) {
        let written = records.len() - unwritten.len();
        let head = records.get(..written).unwrap_or_default();
        let whole = head.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < written {
            // A record was torn: take its beginning back, or end it when the file can be written again.
            let torn = (written - whole) as u64;
            let size = self.file.metadata().map_or(0, |meta| meta.len());
            self.torn = !self.regular || size < torn || self.file.set_len(size - torn).is_err();
        }
        let gone = records.get(whole..).unwrap_or_default();
        let bytes = self.format.payload(gone);
        let cause = LossCause::of(error);
        losses.add(cause, bytes);
        if self.lost.total() == 0 {
            tracing::warn!("write log file {}: {error}", self.config.path.display());
        }
        self.lost.add(cause, bytes);
    }

    /// The record that tells readers of a gap, once the file takes bytes again.
    fn put_marker(&mut self, now: WallTime) {
        let mut text = Vec::new();
        if self.torn {
            text.push(b'\n');
        }
        // Not into the middle of another line, if there is a stream between lines.
        let stream = if self.partial[Stream::Stderr.index()] && !self.partial[Stream::Stdout.index()] {
            Stream::Stdout
        } else {
            Stream::Stderr
        };
        let mut lines = Vec::new();
        if self.partial[stream.index()] {
            lines.push(b'\n');
        }
        for (cause, bytes) in self.lost.iter() {
            lines.extend_from_slice(
                format!("[pintle: {bytes} bytes of output lost: {}]\n", cause.name()).as_bytes(),
            );
        }
        match &self.format {
            Format::Cri => {
                let stamp = self.stamp(now);
                cri::encode(&mut text, &stamp, stream, &lines);
            }
            // What is held of a line comes after it.
            Format::Json(_) => jsonlog::Encoder::new().push(&mut text, now, stream, &lines),
        }
        let mut ignored = Losses::default();
        let lost = std::mem::take(&mut self.lost);
        let torn = std::mem::replace(&mut self.torn, false);
        self.append(&text, &mut ignored);
        if ignored.total() > 0 {
            // Still no room: keep what is to be told.
            (self.lost, self.torn) = (lost, torn);
        } else {
            self.counter.file = self.counter.file.saturating_add(text.len() as u64);
            self.partial[stream.index()] = false;
        }
    }

    /// Tells of a gap if there is one.
    fn mark(&mut self, now: WallTime) {
        if self.torn || self.lost.total() > 0 {
            self.put_marker(now);
        }
    }

    /// Encodes and writes a chunk in pieces, so that what has to be escaped does not grow the memory.
    fn put_json(&mut self, chunk: &Chunk<'_>, scratch: &mut Vec<u8>, losses: &mut Losses) {
        // A record is at most six times as long as its piece, and has some hundred bytes of its own.
        for piece in chunk.data.chunks(WRITE / 8) {
            scratch.clear();
            if let Format::Json(encoder) = &mut self.format {
                encoder.push(scratch, chunk.now, chunk.stream, piece);
            }
            self.put(scratch, losses);
        }
    }

    fn put_cri(&mut self, chunk: &Chunk<'_>, scratch: &mut Vec<u8>, losses: &mut Losses) {
        let stamp = self.stamp(chunk.now);
        let mut rest = chunk.data;
        while !rest.is_empty() {
            let room = cri::room_for(rest.len()).min(WRITE);
            if scratch.len() < room {
                // Fresh memory from the kernel is zero already; growing would copy what means nothing.
                *scratch = vec![0; room];
            }
            let (taken, made) = cri::encode_into(scratch, &stamp, chunk.stream, rest);
            self.put(scratch.get(..made).unwrap_or_default(), losses);
            rest = rest.get(taken..).unwrap_or_default();
        }
    }

    fn take(&mut self, file: File) {
        let size = file.metadata().map_or(0, |meta| meta.len());
        self.file = file;
        self.counter.file = size;
    }

    fn reopen_error(&self, source: io::Error) -> LogError {
        LogError::Reopen { path: self.config.path.clone(), source }
    }

    /// The size limit is reached.
    fn rotate(&mut self) -> Result<(), LogError> {
        if !self.regular {
            return Ok(());
        }
        let path = &self.config.path;
        let fail = |source| LogError::Reopen { path: path.clone(), source };
        let forbid = |reason| LogError::Forbidden { path: path.clone(), reason };
        let place = Place::of(path).map_err(fail)?;
        let here = place.stat().map_err(fail)?;
        let ours = nix::sys::stat::fstat(&self.file).map_err(|errno| fail(errno.into()))?;
        let file = match here {
            Some(stat) if id(&stat) == id(&ours) => match self.config.max_files {
                Some(keep) if keep > 0 => place.rotate(&self.file, keep).map_err(fail)?,
                _ => place.replace(&self.file).map_err(fail)?,
            },
            Some(_) => place.open_existing().map_err(fail)?,
            None => {
                if self.config.max_files.is_some() {
                    place.check_trusted(path, &self.config.allow_dirs).map_err(forbid)?;
                }
                place.create(&self.file).map_err(fail)?
            }
        };
        self.take(file);
        Ok(())
    }

    pub(super) fn thaw(state: SinkState, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let SinkState::File {
            path,
            max_size,
            max_total,
            rotate,
            max_files,
            replace,
            allow_dirs,
            written,
            total,
            partial,
            lost,
            torn,
            json,
            close_partial,
            held,
        } = state
        else {
            return Err(mismatch());
        };
        let file = File::from(fds.into_iter().next().ok_or_else(mismatch)?);
        let regular = file.metadata()?.is_file();
        let mut losses = Losses::default();
        for (errno, bytes) in lost {
            losses.add(LossCause::Errno(errno), bytes);
        }
        Ok(Self {
            config: FileConfig {
                path,
                limits: SizeLimits { file: max_size, total: max_total },
                max_files: rotate.then_some(max_files),
                reopen: if replace { ReopenPolicy::Replace } else { ReopenPolicy::Keep },
                allow_dirs,
                json,
                close_partial,
            },
            format: if json { Format::Json(jsonlog::Encoder::with_held(held)) } else { Format::Cri },
            file,
            regular,
            counter: SizeCounter { file: written, total },
            stamper: Stamper::new(),
            partial,
            lost: losses,
            torn,
        })
    }
}

impl LogSink for FileSink {
    fn driver(&self) -> &'static str {
        match self.format {
            Format::Cri => "k8s-file",
            Format::Json(_) => "json-file",
        }
    }

    fn write(&mut self, chunk: &Chunk<'_>, scratch: &mut Vec<u8>, losses: &mut Losses) {
        self.mark(chunk.now);
        match self.format {
            Format::Cri => {
                self.put_cri(chunk, scratch, losses);
                self.partial[chunk.stream.index()] = chunk.data.last() != Some(&b'\n');
            }
            // Only whole lines and pieces of very long ones are in the file.
            Format::Json(_) => self.put_json(chunk, scratch, losses),
        }
    }

    fn end(&mut self, stream: Stream, now: WallTime, _scratch: &mut Vec<u8>, losses: &mut Losses) {
        let mut last = Vec::new();
        match &mut self.format {
            Format::Json(encoder) => encoder.finish(&mut last, now, stream),
            Format::Cri if self.config.close_partial && self.partial[stream.index()] => {
                let stamp = self.stamp(now);
                cri::encode(&mut last, &stamp, stream, b"\n");
                self.partial[stream.index()] = false;
            }
            Format::Cri => {}
        }
        if !last.is_empty() {
            self.mark(now);
            self.put(&last, losses);
        }
    }

    fn note_loss(&mut self, cause: LossCause, bytes: u64) {
        self.lost.add(cause, bytes);
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        if !self.regular {
            return Ok(());
        }
        if self.config.max_files.is_some_and(|keep| keep > 0) {
            return self.rotate();
        }
        let place = Place::of(&self.config.path).map_err(|e| self.reopen_error(e))?;
        let here = place.stat().map_err(|e| self.reopen_error(e))?;
        let ours = nix::sys::stat::fstat(&self.file).map_err(|errno| self.reopen_error(errno.into()))?;
        let opened = match here {
            None => place.create(&self.file),
            Some(stat) if id(&stat) == id(&ours) => match self.config.reopen {
                ReopenPolicy::Replace => place.replace(&self.file),
                ReopenPolicy::Keep => {
                    // CRI-O waits for an event on the path; setting the length to what it is makes one.
                    let size = self.file.metadata().map_err(|e| self.reopen_error(e))?.len();
                    return self.file.set_len(size).map_err(|e| self.reopen_error(e));
                }
            },
            Some(_) => place.open_existing().and_then(|file| {
                file.set_len(file.metadata()?.len())?;
                Ok(file)
            }),
        };
        self.take(opened.map_err(|e| self.reopen_error(e))?);
        Ok(())
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.config.path)
    }

    fn file_id(&self) -> Option<(u64, u64)> {
        nix::sys::stat::fstat(&self.file).ok().map(|stat| id(&stat))
    }

    fn finish(&mut self, sync: bool) -> Result<(), LogError> {
        self.mark(pintle_sys::clock::wall());
        if sync && self.regular {
            self.file
                .sync_all()
                .map_err(|source| LogError::Sync { path: self.config.path.clone(), source })?;
        }
        Ok(())
    }

    fn freeze(&self) -> io::Result<Option<(SinkState, Vec<OwnedFd>)>> {
        let errnos = self.lost.iter().filter_map(|(cause, bytes)| match cause {
            LossCause::Errno(errno) => Some((errno, bytes)),
            LossCause::SizeLimit | LossCause::RateLimit | LossCause::Deadline => None,
        });
        let state = SinkState::File {
            path: self.config.path.clone(),
            max_size: self.config.limits.file,
            max_total: self.config.limits.total,
            rotate: self.config.max_files.is_some(),
            max_files: self.config.max_files.unwrap_or(0),
            replace: self.config.reopen == ReopenPolicy::Replace,
            allow_dirs: self.config.allow_dirs.clone(),
            written: self.counter.file,
            total: self.counter.total,
            partial: self.partial,
            lost: errnos.collect(),
            torn: self.torn,
            json: self.config.json,
            close_partial: self.config.close_partial,
            held: match &self.format {
                Format::Cri => Default::default(),
                Format::Json(encoder) => encoder.held().clone(),
            },
        };
        Ok(Some((state, vec![self.file.try_clone()?.into()])))
    }
}

#[cfg(test)]
mod tests;
