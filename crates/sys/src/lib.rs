//! The kernel interface of the pintle container monitor: a safe API over the system calls it needs.

pub mod atomic;
pub mod clock;
pub mod peer;
pub mod pidfd;
pub mod process;
