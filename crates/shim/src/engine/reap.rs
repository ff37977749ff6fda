//! The one place where children are reaped.
//!
//! The shim is a subreaper, so that the container's init and every orphan below it end up here. SIGCHLD starts a loop
//! of `waitid(P_ALL, WNOHANG)`; whoever watches a pid is told. An end that nobody watches yet is kept for a while:
//! a runtime may write the pid of a process that is gone before the file is read.

use pintle_core::exit::{Exit, UnknownReason, WaitStatus};
use pintle_core::wall::{MonoTime, WallTime};
use pintle_sys::pidfd::PidFd;
use pintle_sys::{clock, process};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::watch;

/// Ends kept for pids that nobody watches yet.
const UNCLAIMED_MAX: usize = 1024;

/// The end of a process, as the shim saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub exit: Exit,
    /// When the shim reaped it.
    pub at: WallTime,
    /// The same by the boot clock.
    pub mono: MonoTime,
}

impl Ended {
    fn now(exit: Exit) -> Self {
        Self { exit, at: clock::wall(), mono: clock::mono() }
    }

    /// Whether it exited with status 0.
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// The wait status, unless the end is not known.
    pub fn status(&self) -> Option<WaitStatus> {
        match self.exit {
            Exit::Code(code) => Some(WaitStatus::Exited(code)),
            Exit::Signal { signal, core } => Some(WaitStatus::Signaled { signal, core }),
            Exit::Unknown(_) => None,
        }
    }
}

/// A subscription to the end of one process. Cheap to clone; any number may wait.
#[derive(Debug, Clone)]
pub struct ExitWatch {
    pid: i32,
    end: watch::Receiver<Option<Ended>>,
}

impl ExitWatch {
    /// The pid watched.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The end, if it has come.
    pub fn peek(&self) -> Option<Ended> {
        *self.end.borrow()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Ended {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await.map(|v| *v) {
            Ok(Some(ended)) => ended,
            // The reaper is gone, which happens only when the process is about to end.
            _ => std::future::pending().await,
        }
    }

    /// A watch whose end is known already.
    pub fn ended(pid: i32, ended: Ended) -> Self {
        let (_, end) = watch::channel(Some(ended));
        Self { pid, end }
    }
}

/// A child process started by [`Reaper::spawn`].
#[derive(Debug)]
pub struct Child {
    /// Its pid.
    pub pid: i32,
    /// The way to signal it.
    pub pidfd: PidFd,
    /// Our end of its stdin, if the command asked for a pipe.
    pub stdin: Option<OwnedFd>,
    /// Our end of its stdout, if the command asked for a pipe.
    pub stdout: Option<OwnedFd>,
    /// Our end of its stderr, if the command asked for a pipe.
    pub stderr: Option<OwnedFd>,
    /// Its end.
    pub exit: ExitWatch,
}

#[derive(Default)]
struct Table {
    watched: HashMap<i32, watch::Sender<Option<Ended>>>,
    unclaimed: VecDeque<(i32, Ended)>,
}

/// The reaper; cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Reaper {
    table: Arc<Mutex<Table>>,
}

impl Reaper {
    /// Makes the process a subreaper and starts to reap. Once per process, inside the tokio runtime.
    ///
    /// # Errors
    /// As `prctl` and as registering the signal handler.
    pub fn start() -> io::Result<Self> {
        process::set_subreaper()?;
        let mut sigchld = super::signal::signal(libc::SIGCHLD)?;
        let reaper = Self { table: Arc::default() };
        // Children may have ended before the handler was there (after an upgrade).
        reaper.collect();
        let looping = reaper.clone();
        tokio::spawn(async move {
            while sigchld.recv().await.is_some() {
                looping.collect();
            }
        });
        Ok(reaper)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps everything that has ended. Called by the signal task; calling it more often does no harm.
    pub fn collect(&self) {
        while let Ok(Some(reaped)) = process::reap_any() {
            self.record(reaped.pid, Ended::now(reaped.status.into()));
        }
    }

    fn record(&self, pid: i32, ended: Ended) {
        let mut table = self.lock();
        if let Some(sender) = table.watched.remove(&pid) {
            sender.send_replace(Some(ended));
            return;
        }
        if table.unclaimed.len() >= UNCLAIMED_MAX {
            table.unclaimed.pop_front();
        }
        table.unclaimed.push_back((pid, ended));
    }

    /// Starts a command; its end is told by [`Child::exit`].
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        // Nothing reaps between spawn and here: both run on the one thread without an await.
        let exit = {
            let mut table = self.lock();
            table.unclaimed.retain(|(p, _)| *p != pid);
            subscribe(&mut table, pid)
        };
        let pidfd = PidFd::open(pid).inspect_err(|_| {
            // Out of descriptors: what cannot be held would run on without anybody. Not reaped yet, so the pid is its own.
            let _ = child.kill();
        })?;
        Ok(Child {
            pid,
            pidfd,
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
            exit,
        })
    }

    /// Watches a process that something else started below us (the container's init). `since` is a point before it
    /// was started: an older end of a process with the same pid is not taken for it.
    ///
    /// The process need not be our child: one that is not is watched through a pidfd, and its end is taken from the
    /// kernel where it can tell (`PIDFD_GET_INFO`, or the zombie's status), else it is unknown.
    pub fn watch(&self, pid: i32, since: MonoTime) -> ExitWatch {
        {
            let mut table = self.lock();
            if let Some(at) = table.unclaimed.iter().position(|(p, e)| *p == pid && e.mono >= since) {
                if let Some((_, ended)) = table.unclaimed.remove(at) {
                    return ExitWatch::ended(pid, ended);
                }
            }
            table.unclaimed.retain(|(p, _)| *p != pid);
        }
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let stat = process::stat(pid);
        let exit = subscribe(&mut self.lock(), pid);
        if stat.is_none_or(|s| s.ppid != own) {
            match PidFd::open(pid) {
                Ok(fd) => self.watch_foreign(fd),
                Err(_) => self.settle(pid, Exit::Unknown(UnknownReason::MonitorLost)),
            }
        }
        exit
    }

    /// Holds a process that something else started below us, before anybody watches it; `since` as in
    /// [`Reaper::watch`].
    ///
    /// # Errors
    /// `ESRCH` if it is gone.
    pub fn hold(&self, pid: i32, since: MonoTime) -> io::Result<PidFd> {
        let held = PidFd::open(pid)?;
        // If it was reaped before the pidfd was opened, that may hold another process with the same pid.
        let reaped = self.lock().unclaimed.iter().any(|(p, ended)| *p == pid && ended.mono >= since);
        if reaped { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(held) }
    }

    /// Watches a process that is not our child, by a pidfd the caller has checked to be the right one.
    pub fn watch_adopted(&self, pidfd: PidFd) -> ExitWatch {
        let exit = subscribe(&mut self.lock(), pidfd.pid());
        self.watch_foreign(pidfd);
        exit
    }

    fn watch_foreign(&self, pidfd: PidFd) {
        let reaper = self.clone();
        tokio::spawn(async move {
            let pid = pidfd.pid();
            let exit = foreign_end(&reaper, pidfd).await;
            reaper.settle(pid, exit);
        });
    }

    /// Tells the watchers of `pid` unless its end is known already.
    fn settle(&self, pid: i32, exit: Exit) {
        if let Some(sender) = self.lock().watched.remove(&pid) {
            sender.send_replace(Some(Ended::now(exit)));
        }
    }

    fn is_pending(&self, pid: i32) -> bool {
        self.lock().watched.contains_key(&pid)
    }
}

fn subscribe(table: &mut Table, pid: i32) -> ExitWatch {
    let sender = table.watched.entry(pid).or_insert_with(|| watch::channel(None).0);
    ExitWatch { pid, end: sender.subscribe() }
}

async fn foreign_end(reaper: &Reaper, pidfd: PidFd) -> Exit {
    let pid = pidfd.pid();
    if let Ok(fd) = super::ready::async_fd(pidfd, Interest::READABLE) {
        let _ = fd.readable().await;
        // It has ended. Its parent reaps it now or later; a zombie's status is in /proc, a reaped one's behind the
        // pidfd. If we became its parent meanwhile, our own loop has it.
        for round in 0..40u32 {
            reaper.collect();
            if !reaper.is_pending(pid) {
                break;
            }
            if let Some(status) = fd.get_ref().exit_info() {
                return status.into();
            }
            if let Some(stat) = process::stat(pid).filter(|s| s.state == b'Z') {
                // 0 is also what readers without the right to see it get; root and the owner have it.
                if let Some(status) = WaitStatus::from_raw(stat.exit_code) {
                    return status.into();
                }
            }
            tokio::time::sleep(Duration::from_millis(u64::from(round.min(25)) + 1)).await;
        }
    }
    Exit::Unknown(UnknownReason::MonitorLost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    fn rt() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    // One test: a process has one reaper, and P_ALL must not take the children of other tests.
    #[test]
    fn children_orphans_and_signals() {
        rt().block_on(async {
            let reaper = Reaper::start().unwrap();
            let start = clock::mono();
            let child = reaper.spawn(Command::new("sh").args(["-c", "exit 7"])).unwrap();
            assert_eq!(child.exit.wait().await.exit, Exit::Code(7));
            let child = reaper.spawn(Command::new("sleep").arg("1000")).unwrap();
            assert_eq!(child.exit.peek(), None);
            child.pidfd.signal(9).unwrap();
            assert_eq!(child.exit.wait().await.exit, Exit::Signal { signal: 9, core: false });
            // A grandchild whose parent is gone comes to us, and its end is kept until somebody asks.
            let mut command = Command::new("sh");
            command.args(["-c", "sh -c 'exit 5' & echo $!"]).stdout(Stdio::piped());
            let child = reaper.spawn(&mut command).unwrap();
            let mut text = String::new();
            use std::io::Read;
            std::fs::File::from(child.stdout.unwrap()).read_to_string(&mut text).unwrap();
            child.exit.wait().await;
            let pid: i32 = text.trim().parse().unwrap();
            let watch = reaper.watch(pid, start);
            let ended = tokio::time::timeout(Duration::from_secs(30), watch.wait()).await.unwrap();
            // The inner shell may have reaped it itself; then nobody can tell, and that is what is said.
            assert!(matches!(ended.exit, Exit::Code(5) | Exit::Unknown(_)), "{ended:?}");
            assert!(reaper.spawn(&mut Command::new("/no/such/file")).is_err());
            // A pid that was reaped and given to another process is not held for the first; nor is it missed later.
            let own = i32::try_from(std::process::id()).unwrap();
            reaper.record(own, Ended::now(Exit::Code(0)));
            assert!(reaper.hold(own, start).is_err());
            assert!(reaper.hold(own, MonoTime(clock::mono().0 + 1)).is_ok());
        });
    }
}
