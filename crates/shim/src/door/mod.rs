//! The doors: what callers of each protocol see of the engine.

pub mod containerd;
pub mod native;
