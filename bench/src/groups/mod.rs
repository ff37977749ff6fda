//! The groups of measurements; each is a function that adds series to the report.

pub(crate) mod containerd;
pub(crate) mod exec;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod native;
pub(crate) mod neighbours;
pub(crate) mod probes;
pub(crate) mod start;

use anyhow::Result;

use crate::{lab::Lab, report::Report};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub quick: bool,
}

impl Scale {
    /// `full` normally, `quick` with `--quick`.
    pub(crate) fn of(self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

/// Name, what it measures, function.
pub(crate) type Group = (&'static str, fn(&Lab, &mut Report, Scale) -> Result<()>);

/// All groups in the order in which they run.
pub(crate) const GROUPS: &[Group] = &[
    ("size", start::size),
    ("memory", memory::idle),
    ("burst", memory::burst),
    ("containerd", containerd::shims),
    ("startup", start::startup),
    ("exec", exec::exec),
    ("exit", start::exit),
    ("log", log::log),
    ("attach", log::attach),
    ("stdin", log::stdin),
    ("native", native::rpc),
    ("reopen", native::reopen),
    ("neighbours", neighbours::neighbours),
    ("probes", probes::probes),
    ("idle", start::idle),
    ("scale", start::scale),
];
