//! Pure parts.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod argv;
pub mod attach;
pub mod batch;
pub mod cgroup;
pub mod cri;
pub mod detach;
pub mod exit;
pub mod flat_toml;
pub mod goflag;
pub mod journal;
pub mod jsonlog;
pub mod life;
pub mod line;
pub mod logread;
pub mod notify;
pub mod queue;
pub mod rate;
pub mod record;
pub mod rotate;
pub mod runtime;
pub mod sha256;
pub mod stdio_uri;
pub mod sync;
pub mod time;
pub mod wall;
