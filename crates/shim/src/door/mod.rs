//! The doors: what callers of each protocol see of the engine.

pub mod conmon;
pub mod containerd;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod guard;
pub mod native;
