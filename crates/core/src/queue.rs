//! What to do about a client that reads more slowly than the container writes.
//!
//! Pure policy: bytes and times come in, a verdict comes out. The shim holds the bytes.

use core::time::Duration;

/// [`QueuePolicy::budget`] by default.
pub const BUDGET: u64 = 512 * 1024;
/// [`QueuePolicy::deadline`] by default.
pub const DEADLINE: Duration = Duration::from_secs(1);
/// [`QueuePolicy::progress`] by default.
pub const PROGRESS: u64 = 64 * 1024;

/// Budgets of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePolicy {
    /// Bytes held for a client before the container has to wait for it, until half of them are taken.
    pub budget: u64,
    /// How long the container waits for a client that makes less progress than `progress`.
    pub deadline: Duration,
    /// Bytes that a client has to take within `deadline` while the container waits for it.
    pub progress: u64,
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self { budget: BUDGET, deadline: DEADLINE, progress: PROGRESS }
    }
}

/// What the pump may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Read on.
    Accept,
    /// Wait until the client has taken something, at the latest until this time; then ask again.
    Pause {
        /// Monotonic time.
        until: Duration,
    },
    /// Give the client up.
    Drop,
}

/// Book-keeping of one client's queue. Times are monotonic, since any fixed point.
#[derive(Clone, Copy, Debug)]
pub struct ClientQueue {
    policy: QueuePolicy,
    queued: u64,
    sent: u64,
    /// Since when the container waits, and what had been sent then.
    waiting: Option<(Duration, u64)>,
}

impl ClientQueue {
    /// An empty queue.
    pub fn new(policy: QueuePolicy) -> Self {
        Self { policy, queued: 0, sent: 0, waiting: None }
    }

    /// Bytes waiting for the client.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Bytes the client has taken.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes were put into the queue.
    pub fn push(&mut self, bytes: u64) {
        self.queued = self.queued.saturating_add(bytes);
    }

    /// The client took bytes from the queue.
    pub fn pop(&mut self, bytes: u64) {
        self.queued = self.queued.saturating_sub(bytes);
        self.sent = self.sent.saturating_add(bytes);
    }

    /// May the container's output be read on?
    pub fn verdict(&mut self, now: Duration) -> Verdict {
        // Once the container waits, half of the budget has to be taken before it goes on: a client that takes a byte now
        // and then would start a new wait each time and hold it up for ever.
        let bound = if self.waiting.is_some() { self.policy.budget / 2 } else { self.policy.budget };
        if self.queued < bound {
            self.waiting = None;
            return Verdict::Accept;
        }
        let (since, sent) = *self.waiting.get_or_insert((now, self.sent));
        let until = since.saturating_add(self.policy.deadline);
        if now < until {
            return Verdict::Pause { until };
        }
        if self.sent - sent < self.policy.progress {
            return Verdict::Drop;
        }
        self.waiting = Some((now, self.sent));
        Verdict::Pause { until: now.saturating_add(self.policy.deadline) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: QueuePolicy = QueuePolicy { budget: 100, deadline: DEADLINE, progress: 10 };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_client_that_never_reads_costs_one_deadline() {
        let mut queue = ClientQueue::new(POLICY);
        queue.push(99);
        assert_eq!(queue.verdict(ms(0)), Verdict::Accept);
        queue.push(50);
        assert_eq!(queue.verdict(ms(10)), Verdict::Pause { until: ms(1010) });
        assert_eq!(queue.verdict(ms(1009)), Verdict::Pause { until: ms(1010) });
        assert_eq!(queue.verdict(ms(1010)), Verdict::Drop);
    }

    #[test]
    fn progress_buys_time_and_room_ends_the_wait() {
        let mut queue = ClientQueue::new(POLICY);
        queue.push(200);
        assert_eq!(queue.verdict(ms(0)), Verdict::Pause { until: ms(1000) });
        queue.pop(20);
        assert_eq!(queue.verdict(ms(1000)), Verdict::Pause { until: ms(2000) });
        queue.pop(9);
        assert_eq!(queue.verdict(ms(2000)), Verdict::Drop);
        queue.pop(90);
        assert_eq!(queue.verdict(ms(2001)), Verdict::Pause { until: ms(3001) });
        queue.pop(32);
        assert_eq!(queue.verdict(ms(2001)), Verdict::Accept);
        queue.push(100);
        assert_eq!(queue.verdict(ms(5000)), Verdict::Pause { until: ms(6000) });
    }

    /// Found by the fuzz target `queue`: every byte taken at the bound began a new wait.
    #[test]
    fn a_trickle_is_no_progress() {
        let mut queue = ClientQueue::new(POLICY);
        queue.push(101);
        let mut now = 0;
        while let Verdict::Pause { .. } = queue.verdict(ms(now)) {
            now += 900;
            queue.pop(2);
            assert!(now < 5000);
        }
        assert_eq!(queue.verdict(ms(now)), Verdict::Drop);
    }

    proptest! {
        /// However a client behaves, the container waits at most one deadline per `progress` bytes it takes.
        #[test]
        fn waiting_is_bounded(steps in proptest::collection::vec((0u64..40, 0u64..300, 0u64..60), 1..200)) {
            let mut queue = ClientQueue::new(POLICY);
            let (mut now, mut waited) = (0u64, 0u64);
            for (take, wait, put) in steps {
                match queue.verdict(ms(now)) {
                    Verdict::Accept => { queue.push(put); now += 1; }
                    Verdict::Pause { until } => {
                        let step = wait.min(until.as_millis() as u64 - now);
                        now += step;
                        waited += step;
                        let take = take.min(queue.queued());
                        queue.pop(take);
                    }
                    Verdict::Drop => break,
                }
                prop_assert!(queue.queued() < POLICY.budget + 60);
            }
            prop_assert!(waited <= 1000 * (2 + 2 * queue.sent() / POLICY.progress));
        }
    }
}
