//! Moves a stream of output from the container to where it is wanted, and counts what could not be moved.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::container::SETTLE;
use super::logger::Logger;
use crate::engine::log::{LossCause, Losses};

/// Bytes moved at once. Taken when there is something to move, given back when there is not.
pub(super) const BUFFER: usize = 32 * 1024;
/// Between two looks whether somebody reads again, at first and after a while.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(10);

/// Output that went nowhere, by cause.
pub(super) struct Lost {
    /// Id of the container or exec.
    id: String,
    sums: Mutex<Losses>,
    logger: Logger,
}

impl Lost {
    pub(super) fn new(id: &str, logger: Logger) -> Self {
        Self { id: id.to_owned(), sums: Mutex::default(), logger }
    }

    /// Counts, and tells the first loss of each cause when it happens.
    pub(super) fn add(&self, cause: LossCause, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let first = sums.iter().all(|(known, _)| known != cause);
        sums.add(cause, bytes);
        if first {
            self.logger.error(format!(
                "output of {} is lost: {}, {bytes} bytes at first",
                self.id,
                cause.name()
            ));
        }
    }

    pub(super) fn sums(&self) -> Losses {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Lost {
    /// With the last stream: what it came to.
    fn drop(&mut self) {
        for (cause, bytes) in self.sums().iter() {
            self.logger.error(format!("lost {bytes} bytes of output of {}: {}", self.id, cause.name()));
        }
    }
}

/// Where output goes.
pub(super) enum Sink {
    Null,
    /// The second descriptor is a reader of our own, so that a write never fails for want of one.
    Fifo(pipe::Sender, File),
    File(File),
    Pipe(pipe::Sender),
}

impl Sink {
    /// Writes some of what is given, at least a byte, as soon as there is room.
    async fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self {
                Self::Null => Ok(bytes.len()),
                Self::File(file) => file.write(bytes),
                Self::Fifo(sender, _) | Self::Pipe(sender) => sender.try_write(bytes),
            };
            match (written, &*self) {
                (Ok(0), _) => return Err(io::ErrorKind::WriteZero.into()),
                (Err(e), Self::Fifo(sender, _) | Self::Pipe(sender))
                    if e.kind() == io::ErrorKind::WouldBlock =>
                {
                    sender.writable().await?;
                }
                (Err(e), _) if e.kind() == io::ErrorKind::Interrupted => {}
                (other, _) => return other,
            }
        }
    }

    /// Writes everything.
    pub(super) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.write_some(bytes).await?;
            bytes = bytes.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits until nothing is left in a FIFO. Whoever has it open gets the end once he has read all, and `held` goes with
    /// what he has taken. A daemon that is being restarted when the container ends still finds its last words: only a pipe
    /// without any end loses what is in it.
    pub(super) async fn taken<H>(self, lost: &Lost, held: H) {
        let Self::Fifo(sender, ours) = self else { return };
        drop(ours);
        let Ok(sender) = sender.into_nonblocking_fd() else { return };
        let mut left = Left { sender, lost };
        let mut held = Some(held);
        let mut pause = LOOK;
        loop {
            if left.bytes() > 0 {
                drop(held.take());
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_MAX);
                continue;
            }
            // Empty, or somebody reads. Looking on takes no writer, so he sees the end.
            let Ok(rest) = reopen(&left.sender, OFlag::O_RDONLY) else { return };
            drop(left);
            let mut rest = Rest { reader: Some(rest), lost };
            let end = Instant::now() + SETTLE;
            let mut pause = Duration::from_millis(1);
            while rest.bytes() > 0 && Instant::now() < end {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            // He may have gone without reading it.
            match rest.back() {
                Some(again) if again.bytes() > 0 => left = again,
                _ => return,
            }
        }
    }
}

/// Opens a FIFO that is open already once more, whatever has become of its name.
fn reopen(fifo: &OwnedFd, how: OFlag) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let flags = how | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty())?)
}

/// The writing end of a FIFO in which something may be left.
struct Left<'a> {
    sender: OwnedFd,
    lost: &'a Lost,
}

impl Left<'_> {
    /// What would be lost if it were closed now.
    fn bytes(&self) -> u64 {
        let mut polled = [PollFd::new(self.sender.as_fd(), PollFlags::empty())];
        let asked = poll(&mut polled, PollTimeout::ZERO);
        let unread = asked.is_ok() && polled[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR));
        if unread { pintle_sys::bytes::unread(self.sender.as_fd()) } else { 0 }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.lost.add(LossCause::Deadline, self.bytes());
    }
}

/// A reader that only looks on. What is left when it goes is lost, unless somebody else reads.
struct Rest<'a> {
    reader: Option<OwnedFd>,
    lost: &'a Lost,
}

impl<'a> Rest<'a> {
    fn bytes(&self) -> u64 {
        self.reader.as_ref().map_or(0, |reader| pintle_sys::bytes::unread(reader.as_fd()))
    }

    /// The writing end again, where something is left.
    fn back(&mut self) -> Option<Left<'a>> {
        let reader = self.reader.take().filter(|reader| pintle_sys::bytes::unread(reader.as_fd()) > 0)?;
        let sender = reopen(&reader, OFlag::O_WRONLY).ok()?;
        drop(reader);
        Some(Left { sender, lost: self.lost })
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        drop(self.back());
    }
}

/// Where bytes come from.
pub(super) enum Source {
    Pipe(pipe::Receiver),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

impl Source {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Terminal(master) => master.readable().await.map(|mut ready| ready.retain_ready()),
        }
    }

    /// Zero is the end. A terminal whose last process is gone says EIO instead.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Terminal(master) => {
                let read = master.try_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?));
                match read {
                    Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
                    other => other,
                }
            }
        }
    }

    fn unread(&self) -> u64 {
        match self {
            Self::Pipe(pipe) => pintle_sys::bytes::unread(pipe.as_fd()),
            Self::Terminal(master) => pintle_sys::bytes::unread(master.get_ref().as_fd()),
        }
    }
}

/// A stream on its way. What it still holds when it is dropped is lost, and so is what lies in a FIFO that nobody reads.
struct Moving<'a> {
    source: Source,
    sink: Sink,
    /// Bytes read and not written.
    held: u64,
    lost: &'a Lost,
}

impl Moving<'_> {
    fn take_sink(&mut self) -> Sink {
        std::mem::replace(&mut self.sink, Sink::Null)
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.lost.add(LossCause::Deadline, self.held.saturating_add(self.source.unread()));
        if let Sink::Fifo(sender, ours) = self.take_sink() {
            drop(ours);
            if let Ok(sender) = sender.into_nonblocking_fd() {
                drop(Left { sender, lost: self.lost });
            }
        }
    }
}

/// Moves bytes until the source ends; gives the sink back. The source is read on where the sink fails, and what that does
/// not take is counted: the container must not block on it. `read` is told what was read; what it gives is kept until that
/// is written.
pub(super) async fn pump<H>(source: Source, sink: Sink, lost: &Lost, read: impl Fn(u64) -> H) -> Sink {
    let mut moving = Moving { source, sink, held: 0, lost };
    while moving.source.readable().await.is_ok() {
        let mut buffer = vec![0; BUFFER];
        loop {
            match moving.source.try_read(&mut buffer) {
                Ok(0) => return moving.take_sink(),
                Ok(n) => {
                    let _held = read(n as u64);
                    let mut rest = buffer.get(..n).unwrap_or_default();
                    while !rest.is_empty() {
                        moving.held = rest.len() as u64;
                        match moving.sink.write_some(rest).await {
                            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                            Err(e) => {
                                lost.add(LossCause::of(&e), rest.len() as u64);
                                rest = &[];
                            }
                        }
                    }
                    moving.held = 0;
                    // Other streams get their turn.
                    tokio::task::yield_now().await;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return moving.take_sink(),
            }
        }
    }
    moving.take_sink()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(LONG, work).await.expect("in time") })
    }

    /// A FIFO, and what is to be removed with it.
    fn fifo(name: &str) -> (PathBuf, PathBuf) {
        let dir = std::env::temp_dir().join(format!("pintle-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("out");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        (dir, path)
    }

    fn reader(path: &std::path::Path) -> File {
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
    }

    /// A reader that was there when the output ended, and goes without reading it, costs nobody a byte.
    #[test]
    fn what_a_reader_leaves_waits_for_the_next_one() {
        for comes_back in [true, false] {
            let (dir, path) = fifo(&format!("leaves-{comes_back}"));
            block_on(async {
                let client = reader(&path);
                let mut sink =
                    Sink::Fifo(pipe::OpenOptions::new().open_sender(&path).unwrap(), reader(&path));
                sink.write_all(&[b'x'; 5000]).await.unwrap();
                let lost = Arc::new(Lost::new("c", Logger::open(&dir.join("no-log"), false, "n", "c")));
                let counts = lost.clone();
                let task = tokio::spawn(async move { sink.taken(&counts, ()).await });
                // It looks on.
                tokio::time::sleep(Duration::from_millis(5)).await;
                drop(client);
                if comes_back {
                    // Later than anybody is looked at.
                    tokio::time::sleep(SETTLE * 2).await;
                    let mut back = reader(&path);
                    let mut all = Vec::new();
                    let read = std::thread::spawn(move || {
                        while match std::io::Read::read_to_end(&mut back, &mut all) {
                            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
                            Ok(_) => false,
                        } {
                            std::thread::yield_now();
                        }
                        all.len()
                    });
                    task.await.unwrap();
                    assert_eq!(read.join().unwrap(), 5000);
                    assert_eq!(lost.sums().total(), 0);
                } else {
                    task.abort();
                    assert!(task.await.unwrap_err().is_cancelled());
                    assert_eq!(lost.sums().iter().collect::<Vec<_>>(), [(LossCause::Deadline, 5000)]);
                }
            });
            std::fs::remove_dir_all(dir).unwrap();
        }
    }

    /// Wherever the bytes are when a stream is given up (in the container's pipe, in our hands, in a FIFO that nobody
    /// reads), each is counted once.
    #[test]
    fn what_lies_in_a_fifo_that_nobody_reads_is_counted_with_the_rest() {
        const FIRST: usize = 1000;
        const ALL: usize = 120_000;
        let (dir, path) = fifo("output");
        block_on(async {
            let ours = reader(&path);
            let sink = Sink::Fifo(pipe::OpenOptions::new().open_sender(&path).unwrap(), ours);
            let (theirs, container) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
            let source = Source::Pipe(pipe::Receiver::from_owned_fd(theirs).unwrap());
            let lost = Arc::new(Lost::new("c", Logger::open(&dir.join("no-log"), false, "n", "c")));
            let read = Arc::new(AtomicU64::new(0));
            let (counts, moved) = (lost.clone(), read.clone());
            let task = tokio::spawn(async move {
                pump(source, sink, &counts, |n| {
                    moved.fetch_add(n, Ordering::Relaxed);
                })
                .await;
            });
            let reached = async |bytes: usize| {
                while read.load(Ordering::Relaxed) < bytes as u64 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            // The sizes do not divide each other, so that the last write into the FIFO is a part of what was read.
            let mut container = File::from(container);
            container.write_all(&[b'x'; FIRST]).unwrap();
            reached(FIRST).await;
            let writing = std::thread::spawn(move || container.write_all(&[b'x'; ALL - FIRST]).unwrap());
            // More than the FIFO holds.
            reached(65_537).await;
            while !writing.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
            let counted: Vec<_> = lost.sums().iter().collect();
            assert_eq!(counted, [(LossCause::Deadline, ALL as u64)]);
        });
        std::fs::remove_dir_all(dir).unwrap();
    }
}
