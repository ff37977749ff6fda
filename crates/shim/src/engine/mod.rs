//! The engine: what all doors are made of. One thread, no helper threads, every handle `Send`.

pub mod attach;
pub mod cgroup;
pub mod console;
pub mod ctl;
pub mod handover;
pub mod hub;
pub mod log;
pub mod oom;
pub mod pump;
pub mod ready;
pub mod reap;
pub mod record;
pub mod runtime;
pub mod stats;
mod stdin;
