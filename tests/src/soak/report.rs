//! Counts of a soak.

use std::collections::BTreeMap;
use std::fmt;

/// What happened in one life or in all of them.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Containers.
    pub containers: u64,
    /// Processes started beside the first.
    pub execs: u64,
    /// Bytes that containers wrote.
    pub bytes: u64,
    /// Bytes that are in no log by what was done to the log.
    pub injected: u64,
    /// Bytes that the shim told to have lost.
    pub reported: u64,
    /// What was done to it, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// How containers ended, by kind.
    pub ends: BTreeMap<String, u64>,
    /// What did not hold: the life, and what.
    pub violations: Vec<(u64, String)>,
    /// Largest private dirty memory of a shim, KiB.
    pub shim_kib: u64,
    /// Most descriptors of a shim.
    pub shim_fds: usize,
}

impl Report {
    /// Counts one of a kind of fault.
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: Self) {
        self.containers += other.containers;
        self.execs += other.execs;
        self.bytes += other.bytes;
        self.injected += other.injected;
        self.reported += other.reported;
        for (k, n) in other.faults {
            *self.faults.entry(k).or_default() += n;
        }
        for (k, n) in other.ends {
            *self.ends.entry(k).or_default() += n;
        }
        // What goes wrong in every life must not fill the memory.
        let room = 1000usize.saturating_sub(self.violations.len());
        self.violations.extend(other.violations.into_iter().take(room));
        self.shim_kib = self.shim_kib.max(other.shim_kib);
        self.shim_fds = self.shim_fds.max(other.shim_fds);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "containers        {:>12}", self.containers)?;
        writeln!(f, "execs             {:>12}", self.execs)?;
        writeln!(f, "bytes written     {:>12}", self.bytes)?;
        writeln!(f, "faults            {:>12}", self.faults.values().sum::<u64>())?;
        for (kind, n) in &self.faults {
            writeln!(f, "  {kind:<16}{n:>12}")?;
        }
        writeln!(f, "ends")?;
        for (kind, n) in &self.ends {
            writeln!(f, "  {kind:<16}{n:>12}")?;
        }
        writeln!(f, "losses injected   {:>12} bytes", self.injected)?;
        writeln!(f, "losses reported   {:>12} bytes", self.reported)?;
        writeln!(
            f,
            "largest shim      {:>12} KiB private dirty, {} descriptors",
            self.shim_kib, self.shim_fds
        )?;
        write!(f, "violations        {:>12}", self.violations.len())
    }
}
