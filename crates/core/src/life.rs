//! The life of a container: its statuses, the steps from one to the next, and what may be asked for at which.
//!
//! Steps are reported by whoever sees them happen, in any order and more than once: a call of the runtime that returns
//! late, a process that is gone before its start was told, an engine that acts behind the shim's back. [`Life`] only goes
//! forward, and says of each step whether it is news: what is told by its answers is told once and in order.

/// Status of a container, as in the OCI runtime specification where that has a word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Nothing asked for yet, or create is running.
    Creating,
    /// Created, not started.
    Created,
    /// Started.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
    /// Deleted.
    Deleted,
}

impl Status {
    /// The word for it in documents and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }

    /// Whether this may be asked for.
    pub fn allows(self, call: Call) -> bool {
        match call {
            Call::Create => self == Self::Creating,
            Call::Start => self == Self::Created,
            Call::Exec | Call::Pause => self == Self::Running,
            Call::Resume => self == Self::Paused,
            Call::Checkpoint => matches!(self, Self::Running | Self::Paused),
            Call::Update => matches!(self, Self::Created | Self::Running | Self::Paused),
        }
    }
}

/// What may be asked of a container, as far as that depends on its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Create or restore it.
    Create,
    /// Start it.
    Start,
    /// Run one more process in it.
    Exec,
    /// Freeze it.
    Pause,
    /// Thaw it.
    Resume,
    /// Change its limits.
    Update,
    /// Write a checkpoint of it.
    Checkpoint,
}

impl Call {
    /// The word for it in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update => "update",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The runtime has created it.
    Created,
    /// The runtime has restored it from a checkpoint: created and started in one.
    Restored,
    /// It has been started.
    Started,
    /// It has been frozen.
    Paused,
    /// It has been thawed.
    Resumed,
    /// Its first process is gone. How it ended is not known yet, and nothing is told.
    Died,
    /// How it ended is known, and everything it wrote is in its log.
    Ended,
    /// It has been deleted.
    Deleted,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    status: Status,
    started: bool,
    ended: bool,
}

impl Default for Life {
    fn default() -> Self {
        Self { status: Status::Creating, started: false, ended: false }
    }
}

impl Life {
    /// One that somebody else has followed until here.
    pub fn resume(status: Status, started: bool, ended: bool) -> Self {
        Self { status, started, ended }
    }

    /// Its status.
    pub fn status(self) -> Status {
        self.status
    }

    /// Takes a step; whether it is news, to be told. What is not possible from here changes nothing.
    pub fn take(&mut self, step: Step) -> bool {
        use Status::{Created, Creating, Deleted, Paused, Running, Stopped};
        let next = match (step, self.status) {
            (Step::Deleted, now) if now != Deleted => Deleted,
            (_, Deleted) | (Step::Died | Step::Ended, Creating) => return false,
            (Step::Died, _) => {
                self.status = Stopped;
                return false;
            }
            (Step::Ended, _) if !self.ended => Stopped,
            (Step::Created, Creating) => Created,
            (Step::Restored, Creating) | (Step::Started, Created) | (Step::Resumed, Paused) => Running,
            // It was gone before anybody saw that it had been started.
            (Step::Started, Stopped) if !self.started && !self.ended => Stopped,
            (Step::Paused, Running) => Paused,
            _ => return false,
        };
        self.status = next;
        self.started |= matches!(step, Step::Started | Step::Restored);
        self.ended |= step == Step::Ended;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(steps: &[Step]) -> (alloc::vec::Vec<Step>, Status) {
        let mut life = Life::default();
        let told = steps.iter().copied().filter(|s| life.take(*s)).collect();
        (told, life.status())
    }

    #[test]
    fn a_whole_life() {
        use Step::{Created, Deleted, Ended, Paused, Resumed, Started};
        let steps = [Created, Started, Paused, Resumed, Ended, Deleted];
        assert_eq!(told(&steps), (steps.to_vec(), Status::Deleted));
    }

    #[test]
    fn what_comes_twice_or_late_is_no_news() {
        use Step::{Created, Died, Ended, Paused, Resumed, Started};
        let steps = [Created, Created, Started, Started, Ended, Ended, Died, Started, Paused, Resumed];
        assert_eq!(told(&steps), (alloc::vec![Created, Started, Ended], Status::Stopped));
        // Thawed by its stop, while a pause returns late.
        let steps = [Created, Started, Paused, Resumed, Resumed, Ended, Paused];
        assert_eq!(told(&steps).1, Status::Stopped);
    }

    #[test]
    fn a_start_that_nobody_saw_is_told_before_the_end() {
        use Step::{Created, Died, Ended, Started};
        assert_eq!(told(&[Created, Died, Started, Ended]).0, [Created, Started, Ended]);
        // One that was never started.
        assert_eq!(told(&[Created, Died, Ended, Started]).0, [Created, Ended]);
    }

    #[test]
    fn a_container_that_is_deleted_stays_so() {
        use Step::{Created, Deleted, Died, Ended, Restored, Started};
        let steps = [Restored, Deleted, Created, Started, Died, Ended, Deleted];
        assert_eq!(told(&steps), (alloc::vec![Restored, Deleted], Status::Deleted));
    }
}
