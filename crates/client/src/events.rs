//! Following the events of a container.

use crate::{
    error::{Error, Result},
    monitor::Monitor,
    types::{Event, EventKind},
};
use std::{collections::VecDeque, time::Duration};

/// Longest time one question for events waits.
const POLL: Duration = Duration::from_secs(30);

/// Events in order, made by [`Monitor::events`].
#[derive(Debug)]
pub struct EventStream {
    monitor: Monitor,
    after: u64,
    queue: VecDeque<Event>,
    done: bool,
}

impl EventStream {
    pub(crate) fn new(monitor: Monitor, after: u64) -> Self {
        Self { monitor, after, queue: VecDeque::new(), done: false }
    }

    /// The next event; `None` after the container was deleted and its shim has ended.
    ///
    /// Safe to cancel: an event is given once, and none is lost.
    ///
    /// # Errors
    /// If the shim is gone although the container was not deleted, or does not answer.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                self.done |= event.kind == EventKind::Deleted;
                return Ok(Some(event));
            }
            if self.done {
                return Ok(None);
            }
            match self.monitor.poll_events(self.after, POLL).await {
                Ok(events) => {
                    if let Some(last) = events.last() {
                        self.after = self.after.max(last.sequence);
                    }
                    self.queue.extend(events);
                }
                // A shim that is being replaced is back in a moment.
                Err(Error::Disconnected { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Sequence number of the last event that was fetched; a later stream may go on from there.
    pub fn position(&self) -> u64 {
        self.queue.front().map_or(self.after, |next| next.sequence.saturating_sub(1))
    }
}
