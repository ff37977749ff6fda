//! The conmon door against the contract that its callers and conmon's own test suite define.
//!
//! Names that start with a section and number of that suite (`basic_02`, `exec_07`, ...) make the same
//! demand as the row with that number.

mod arguments;
mod attaching;
mod control;
mod execs;
mod exits;
mod gates;
mod logs;
mod native;
mod services;
mod weaknesses;
