//! Pure parts.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod argv;
pub mod cgroup;
pub mod exit;
pub mod notify;
pub mod record;
pub mod runtime;
pub mod sync;
pub mod wall;
pub mod attach;
pub mod cri;
pub mod journal;
pub mod line;
pub mod notify;
pub mod queue;
pub mod rotate;
pub mod sync;
pub mod time;
