//! Reading one file of a log from where we are to its end, and finding where its last lines begin.

use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result};
use pintle_core::logread::{self, Tail};

use super::chain::{Chain, LogFile};
use super::show::Show;

/// Bytes of one read.
const READ: usize = 256 * 1024;

/// Bytes before our place by which a file is known again that was emptied and written anew.
const MARK: usize = 64;

/// A file, and how far it is read.
pub(super) struct Reader {
    pub(super) log: LogFile,
    /// Bytes that are read.
    at: u64,
    /// The last of them that are no whole record yet.
    rest: Vec<u8>,
    /// The last bytes before `at`.
    mark: Vec<u8>,
}

impl Reader {
    pub(super) fn new(log: LogFile, at: u64) -> Self {
        Self { log, at, rest: Vec::new(), mark: Vec::new() }
    }

    /// Shows everything up to the end of the file. A record whose end is not there yet waits.
    pub(super) fn drain(&mut self, chain: &Chain, show: &mut Show) -> Result<()> {
        if self.was_emptied().with_context(|| format!("read {}", self.log.path.display()))? {
            self.restart(chain, show)?;
        }
        self.read(show)
    }

    fn read(&mut self, show: &mut Show) -> Result<()> {
        let mut buf = vec![0; READ];
        loop {
            let n = match self.log.file.read_at(&mut buf, self.at) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e).with_context(|| format!("read {}", self.log.path.display())),
            };
            let read = &buf[..n];
            let begin = self.at - self.rest.len() as u64;
            self.at += n as u64;
            self.mark.extend_from_slice(&read[n.saturating_sub(MARK)..]);
            self.mark.drain(..self.mark.len().saturating_sub(MARK));
            let Some(end) = read.iter().rposition(|b| *b == b'\n') else {
                self.rest.extend_from_slice(read);
                continue;
            };
            self.rest.extend_from_slice(&read[..=end]);
            let mut at = begin;
            for line in self.rest.split_inclusive(|b| *b == b'\n') {
                show.line(line, &self.log.path, at);
                at += line.len() as u64;
            }
            self.rest.clear();
            self.rest.extend_from_slice(&read[end + 1..]);
            show.flush()?;
        }
    }

    /// Whether the file was truncated in place since we read it, and perhaps written to again.
    fn was_emptied(&self) -> io::Result<bool> {
        if self.log.len()? < self.at {
            return Ok(true);
        }
        let mut bytes = [0; MARK];
        let bytes = &mut bytes[..self.mark.len()];
        match self.log.file.read_exact_at(bytes, self.at - self.mark.len() as u64) {
            Ok(()) => Ok(*bytes != *self.mark),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Goes on at the beginning of a file that was emptied; what it had by then is read from its copy, if there is one.
    fn restart(&mut self, chain: &Chain, show: &mut Show) -> Result<()> {
        let copy =
            chain.copy(self.at, &self.mark).with_context(|| format!("read {}", chain.dir().display()))?;
        match copy {
            Some(copy) => {
                let rest = std::mem::take(&mut self.rest);
                let mark = std::mem::take(&mut self.mark);
                let mut old = Self { log: copy, at: self.at, rest, mark };
                old.read(show)?;
                old.end(show);
            }
            None => {
                self.end(show);
                show.say(&format!(
                    "{} was truncated; what was written to it just before is missing here",
                    self.log.path.display()
                ));
            }
        }
        (self.at, self.rest, self.mark) = (0, Vec::new(), Vec::new());
        Ok(())
    }

    /// Nothing more comes of this file: a record without its end never gets it.
    pub(super) fn end(&mut self, show: &mut Show) {
        if !self.rest.is_empty() {
            let at = self.at - self.rest.len() as u64;
            show.unreadable(&self.log.path, at, "log record without its end");
            self.rest.clear();
        }
    }
}

/// Where the last `lines` lines of a log begin, and how many lines of each stream to leave out from there.
pub(super) fn tail(chain: &Chain, current: LogFile, lines: usize) -> Result<(LogFile, u64, [u64; 2])> {
    if lines == 0 {
        let end = current.len()?;
        return Ok((current, end, [0; 2]));
    }
    let mut search = Tail::new(lines);
    let mut file = current;
    // The last file with a line that is wanted, once we are beyond it.
    let mut found = None;
    for number in 0_u64.. {
        let context = || format!("read {}", file.path.display());
        let done = backward(&file, &mut |line, at| {
            logread::parse(line).is_ok_and(|e| search.older(e.stream, e.complete, (number, at)))
        })
        .with_context(context)?;
        let here = search.position().is_some_and(|(n, _)| *n == number);
        if done && here {
            break;
        }
        match (done, chain.older(&file).with_context(context)?) {
            (false, Some(older)) => {
                let passed = std::mem::replace(&mut file, older);
                if here {
                    found = Some(passed);
                }
            }
            _ if here => break,
            _ => {
                file = found.unwrap_or(file);
                break;
            }
        }
    }
    let ((_, at), skip) = search.start().unwrap_or_default();
    Ok((file, at, skip))
}

/// Gives the whole lines of a file with their places, from the last one back, until one says that it is enough.
fn backward(log: &LogFile, take: &mut impl FnMut(&[u8], u64) -> bool) -> io::Result<bool> {
    let mut end = log.len()?;
    // What is read of the line that goes on before `end`.
    let mut rest = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(READ as u64);
        let mut bytes = vec![0; (end - begin) as usize];
        match log.file.read_exact_at(&mut bytes, begin) {
            // It was truncated under us.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(true),
            other => other?,
        }
        bytes.append(&mut rest);
        let mut line_end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        while line_end > 0 {
            let start = bytes[..line_end - 1].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            if start == 0 && begin > 0 {
                break;
            }
            if take(&bytes[start..line_end], begin + start as u64) {
                return Ok(true);
            }
            line_end = start;
        }
        bytes.truncate(line_end);
        rest = bytes;
        end = begin;
    }
    Ok(false)
}
