//! The process that stands next to every container: one engine behind three doors.
//!
//! It is a library only so that the doors, the tests and the benches share one compilation; nothing outside this
//! repository may rely on it.

pub mod door;
pub mod engine;
