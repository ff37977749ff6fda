//! The doors: what callers of each protocol see of the engine.

pub mod conmon;
pub mod containerd;
pub mod native;
