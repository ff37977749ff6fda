//! The engine: what all doors are made of. One thread, no helper threads, every handle `Send`.

pub mod cgroup;
pub mod oom;
pub mod ready;
pub mod reap;
pub mod record;
pub mod runtime;
pub mod stats;
