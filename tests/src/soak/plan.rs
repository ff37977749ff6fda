//! What happens in one life: drawn from the seed before the life begins, so that a life can be repeated.

use super::rng::Rng;

/// Where the container's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// A file without limits.
    Plain,
    /// A file that the shim rotates at this size, keeping so many.
    Rotated(u64, u32),
    /// A file that takes so many bytes in all.
    Limited(u64),
    /// A file system of this many KiB.
    Tiny(u64),
}

/// One thing that happens to the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It writes lines: how many, how long, to stderr instead of stdout.
    Lines(u64, u64, bool),
    /// It writes these many bytes without a newline.
    Piece(u64, bool),
    /// A process in it ends with this code after writing so many bytes.
    ExecSync(u8, u64),
    /// So many processes in it at once.
    ExecStorm(u64),
    /// A process in it copies so many bytes from its stdin to its stdout.
    ExecCat(u64),
    /// A process that overruns its time and leaves children.
    ExecTimeout,
    /// A program that does not exist.
    ExecMissing,
    /// A client that reads everything from now on.
    Attach,
    /// A client that reads nothing.
    AttachStalled,
    /// A client types one line.
    Feed,
    /// The log is renamed and opened anew.
    Reopen,
    /// Frozen and thawed.
    Pause,
    /// Usage is asked for.
    Stats,
    /// Another limit.
    Update,
    /// All connections are closed and made anew.
    Reconnect,
    /// A call whose client goes away.
    Abandon,
    /// Nonsense on every socket.
    Garbage,
    /// A burst of signals at the shim that must not end it.
    Signals,
    /// The shim is killed and another takes over.
    KillShim,
    /// The shim is replaced in place.
    Upgrade,
    /// The program in it is hit by the memory limit, but not its first process.
    OomChild,
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with this code.
    Code(u8),
    /// By itself, leaving a process that holds stdout.
    Orphan(u8),
    /// By a signal from us.
    Kill(i32),
    /// Asked to stop; it does not listen.
    Stop,
    /// By the memory limit.
    Oom,
    /// Deleted by force while it runs.
    Delete,
}

/// A life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// crun instead of runc.
    pub(super) crun: bool,
    /// Its log.
    pub(super) log: Log,
    /// What happens.
    pub(super) steps: Vec<Step>,
    /// How it ends.
    pub(super) end: End,
}

/// What the shim under test can do beyond the core.
#[derive(Debug, Clone, Copy, Default)]
pub struct Abilities {
    /// A lost shim can be replaced.
    pub adopt: bool,
    /// A shim can be replaced in place.
    pub upgrade: bool,
    /// It has a conmon door.
    pub conmon: bool,
}

impl Plan {
    /// The plan of one life.
    pub(super) fn draw(rng: &mut Rng, abilities: Abilities) -> Self {
        let crun = rng.chance(15);
        let log = match rng.weighted(&[50, 15, 15, 20]) {
            0 => Log::Plain,
            1 => Log::Rotated(rng.range(8, 64) * 1024, rng.range(1, 4) as u32),
            2 => Log::Limited(rng.range(16, 128) * 1024),
            _ => Log::Tiny(rng.range(4, 32) * 8),
        };
        let count = rng.range(1, 9);
        let mut steps: Vec<Step> = (0..count).map(|_| Self::step(rng, log, abilities)).collect();
        // A shim that was lost may have lost output: nothing else is judged in such a life.
        if steps.contains(&Step::KillShim) {
            steps
                .retain(|s| matches!(s, Step::Lines(..) | Step::ExecSync(..) | Step::KillShim | Step::Stats));
        }
        let end = match rng.weighted(&[45, 8, 15, 10, 12, 10]) {
            0 => End::Code(rng.range(0, 256) as u8),
            1 => End::Orphan(rng.range(0, 256) as u8),
            2 => End::Kill([1, 6, 9, 9, 10, 15][rng.range(0, 6) as usize]),
            3 => End::Stop,
            4 => End::Oom,
            _ => End::Delete,
        };
        Self { crun, log, steps, end }
    }

    fn step(rng: &mut Rng, log: Log, abilities: Abilities) -> Step {
        let plain = log == Log::Plain;
        // Where losses are counted to the byte, only whole lines on one stream.
        let whole = matches!(log, Log::Tiny(_) | Log::Limited(_));
        loop {
            return match rng.weighted(&[30, 8, 12, 4, 5, 2, 3, 6, 3, 4, 7, 4, 5, 3, 5, 3, 3, 3, 5, 5, 3]) {
                0 => Step::Lines(rng.range(1, 3000), rng.range(1, 120), !whole && rng.chance(25)),
                1 if !whole => Step::Piece(rng.range(1, 100_000), rng.chance(25)),
                2 => Step::ExecSync(rng.range(0, 256) as u8, rng.range(0, 200_000)),
                3 => Step::ExecStorm(rng.range(2, 9)),
                4 => Step::ExecCat(rng.range(1, 600_000)),
                5 => Step::ExecTimeout,
                6 => Step::ExecMissing,
                7 => Step::Attach,
                8 => Step::AttachStalled,
                9 if !whole => Step::Feed,
                10 if plain => Step::Reopen,
                11 => Step::Pause,
                12 => Step::Stats,
                13 => Step::Update,
                14 => Step::Reconnect,
                15 => Step::Abandon,
                16 => Step::Garbage,
                17 => Step::Signals,
                18 if abilities.adopt && plain => Step::KillShim,
                19 if abilities.upgrade => Step::Upgrade,
                20 => Step::OomChild,
                _ => continue,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Abilities, Plan, Rng};

    #[test]
    fn a_life_can_be_repeated() {
        let all = Abilities { adopt: true, upgrade: true, conmon: true };
        for life in 0..200 {
            let draw = || Plan::draw(&mut Rng::new(7, life), all);
            assert_eq!(draw(), draw());
        }
    }
}
