//! An idle shim keeps little: when the event loop has had nothing to do for a moment, what it does not need while it
//! sleeps goes back to the kernel (docs/adr/0017). Armed by activity; nothing here wakes a shim that is idle already.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pintle_sys::watch::{Timer, read_counter};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use super::ready::async_fd;

/// Two of these without activity are quiet.
const TICK: Duration = Duration::from_millis(1500);
/// So many returns to idleness are followed by a settling in quick succession. Coming back costs some 100 us, which a
/// caller that asks every few seconds shall not pay each time.
const EAGER: u32 = 4;
/// After those, one in such a time.
const RARELY: Duration = Duration::from_secs(60);

/// How often the loop was woken. Wraps.
static WOKEN: AtomicU32 = AtomicU32::new(0);
/// Whether nothing happened since the memory was given back.
static SETTLED: AtomicBool = AtomicBool::new(false);
static ACTIVE: Notify = Notify::const_new();

/// The event loop of a door: one thread, and memory goes back when it is idle.
///
/// # Errors
/// If the kernel refuses descriptors.
pub fn runtime() -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        // The list that events are fetched into is as long; 1024 by default, which is 12 kB.
        .max_io_events_per_tick(64)
        .on_thread_unpark(woken)
        .build()?;
    runtime.spawn(settle_when_idle());
    Ok(runtime)
}

fn woken() {
    WOKEN.fetch_add(1, Ordering::Relaxed);
    if SETTLED.swap(false, Ordering::Relaxed) {
        ACTIVE.notify_one();
    }
}

async fn settle_when_idle() {
    let mut allowed = Allowance::new(Instant::now());
    loop {
        // Without descriptors for a timer or without /proc there is nothing to gain, and nothing is lost.
        if quiet(&mut allowed).await.is_ok() {
            let _ = pintle_sys::mem::settle();
        }
        SETTLED.store(true, Ordering::Relaxed);
        ACTIVE.notified().await;
    }
}

/// Waits until the loop has been quiet and memory may be given back.
///
/// A timer of the kernel's, since the runtime's own wakes the loop up to four times for one expiry.
async fn quiet(allowed: &mut Allowance) -> io::Result<()> {
    let timer = async_fd(Timer::new()?, Interest::READABLE)?;
    loop {
        let mut ticks = 0;
        while ticks < 2 {
            let before = WOKEN.load(Ordering::Relaxed);
            wait(&timer, TICK).await?;
            // One is the timer's.
            let others = WOKEN.load(Ordering::Relaxed).wrapping_sub(before) > 1;
            ticks = if others { 0 } else { ticks + 1 };
        }
        match allowed.take(Instant::now()) {
            Ok(()) => return Ok(()),
            Err(rest) => wait(&timer, rest).await?,
        }
    }
}

async fn wait(timer: &AsyncFd<Timer>, time: Duration) -> io::Result<()> {
    timer.get_ref().set(time)?;
    loop {
        let mut ready = timer.readable().await?;
        match ready.try_io(|timer| read_counter(timer.as_fd())) {
            Ok(done) => return done.map(|_| ()),
            Err(_would_block) => {}
        }
    }
}

/// `EAGER` at once, one more each `RARELY`.
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: EAGER, since: now }
    }

    /// Takes one, or tells after which time there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.duration_since(self.since);
        let more = u32::try_from(passed.as_secs() / RARELY.as_secs()).unwrap_or(u32::MAX);
        if self.left.saturating_add(more) >= EAGER {
            (self.left, self.since) = (EAGER, now);
        } else {
            self.left += more;
            self.since += RARELY * more;
        }
        if self.left == 0 {
            return Err(RARELY.saturating_sub(now.duration_since(self.since)));
        }
        self.left -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowance() {
        let began = Instant::now();
        let at = |secs| began + Duration::from_secs(secs);
        let mut a = Allowance::new(began);
        for second in 0..u64::from(EAGER) {
            assert_eq!(a.take(at(second)), Ok(()));
        }
        assert_eq!(a.take(at(10)), Err(Duration::from_secs(50)));
        assert_eq!(a.take(at(60)), Ok(()));
        assert_eq!(a.take(at(61)), Err(Duration::from_secs(59)));
        assert_eq!(a.take(at(100_000)), Ok(()));
        assert_eq!(a.left, EAGER - 1);
        // A poller gets one a minute in the long run.
        let taken = (0..3600).filter(|s| a.take(at(100_001 + s)).is_ok()).count();
        assert!((60..=64).contains(&taken), "{taken}");
    }
}
