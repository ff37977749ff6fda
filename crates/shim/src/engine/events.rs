//! What happened to a container: a bounded ring with sequence numbers, to be followed from any point still held.

use pintle_core::record::ExitRecord;
use pintle_core::wall::WallTime;
use pintle_sys::clock;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Events held for followers.
pub const EVENTS_MAX: usize = 1024;

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum EventKind {
    /// The container was created.
    Created,
    /// It was started.
    Started,
    /// An exec runs.
    ExecStarted,
    /// An exec has ended.
    ExecExited,
    /// The container has ended.
    Exited,
    /// Processes were killed for want of memory.
    Oom,
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
    /// The log was opened anew.
    LogReopened,
    /// A log lost bytes.
    BytesLost,
    /// An attach client was dropped.
    ClientDropped,
    /// Limits were changed.
    Updated,
    /// A checkpoint was made.
    Checkpointed,
    /// Restored from a checkpoint.
    Restored,
    /// Deleted.
    Deleted,
    /// The shim was replaced in place.
    Upgraded,
    /// A new shim took over.
    Adopted,
    /// Older events fell out of the ring before this follower read them.
    EventsLost,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Grows by one with each event.
    pub sequence: u64,
    /// When.
    pub at: WallTime,
    /// What.
    pub kind: EventKind,
    /// Exec id; empty for the container.
    pub exec_id: String,
    /// Pid concerned, or 0.
    pub pid: i32,
    /// The end, for the kinds that are one.
    pub exit: Option<ExitRecord>,
    /// More about it.
    pub attributes: Vec<(String, String)>,
}

/// The ring.
pub struct EventRing {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Event>,
    last: u64,
}

impl EventRing {
    /// An empty ring whose first event will follow `last`.
    pub fn new(last: u64) -> Self {
        Self { ring: Mutex::new(Ring { events: VecDeque::new(), last }), newest: watch::channel(last).0 }
    }

    /// A ring that goes on with the events of a predecessor, in order.
    pub fn resume(last: u64, events: Vec<Event>) -> Self {
        Self { ring: Mutex::new(Ring { events: events.into(), last }), newest: watch::channel(last).0 }
    }

    /// Appends an event.
    pub fn push(
        &self,
        kind: EventKind,
        exec_id: &str,
        pid: i32,
        exit: Option<ExitRecord>,
        attributes: &[(&str, String)],
    ) {
        let last = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            // The number may come from a handed-over state.
            ring.last = ring.last.saturating_add(1);
            let event = Event {
                sequence: ring.last,
                at: clock::wall(),
                kind,
                exec_id: exec_id.to_owned(),
                pid,
                exit,
                attributes: attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
            };
            if ring.events.len() >= EVENTS_MAX {
                ring.events.pop_front();
            }
            ring.events.push_back(event);
            ring.last
        };
        self.newest.send_replace(last);
    }

    /// Number of the newest event; 0 before the first.
    pub fn last(&self) -> u64 {
        *self.newest.borrow()
    }

    /// The events after `after`, at most `limit`. If some of them are gone, the first one says how many.
    pub fn after(&self, after: u64, limit: usize) -> Vec<Event> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        let oldest = ring.events.front().map_or(ring.last + 1, |e| e.sequence);
        let next = after.saturating_add(1);
        // 0 asks for what is held; that older ones are gone is no loss then.
        if after != 0 && next < oldest {
            found.push(Event {
                sequence: oldest - 1,
                at: clock::wall(),
                kind: EventKind::EventsLost,
                exec_id: String::new(),
                pid: 0,
                exit: None,
                attributes: vec![("count".to_owned(), (oldest - next).to_string())],
            });
        }
        found.extend(ring.events.iter().filter(|e| e.sequence > after).take(limit).cloned());
        found
    }

    /// Waits until there is an event after `after`.
    pub async fn wait(&self, after: u64) {
        let mut newest = self.newest.subscribe();
        // The sender is part of `self`, so this ends only with an event.
        let _ = newest.wait_for(|n| *n > after).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_and_loss() {
        let ring = EventRing::new(0);
        for _ in 0..EVENTS_MAX + 10 {
            ring.push(EventKind::Oom, "", 1, None, &[("kills", "1".to_owned())]);
        }
        assert_eq!(ring.last(), EVENTS_MAX as u64 + 10);
        let all = ring.after(0, usize::MAX);
        assert_eq!((all.len(), all[0].sequence), (EVENTS_MAX, 11));
        let late = ring.after(3, 5);
        assert_eq!(late[0].kind, EventKind::EventsLost);
        assert_eq!((late[0].sequence, late[0].attributes[0].1.as_str()), (10, "7"));
        assert_eq!((late.len(), late[1].sequence), (6, 11));
        assert!(ring.after(ring.last(), 5).is_empty());
        assert_eq!(ring.after(10, 1)[0].sequence, 11);
        // Any number a client may send.
        assert!(ring.after(u64::MAX, 5).is_empty());
    }
}
