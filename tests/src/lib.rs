//! Support for the end-to-end tests: real containers, and the proof that nothing of them is left.
//!
//! A test takes a [`TempDir`] and a [`unique_id`], writes a [`Bundle`], waits with [`wait_for`] (a
//! condition and a generous deadline, never a fixed time). When its [`TempDir`] goes, nothing that carries the name of
//! this directory or of a container in it may be left; before a shim is let go, what it holds is looked at
//! ([`within_bounds`]). Neither can be forgotten by a test that uses this library. A program that
//! is missing is a loud failure ([`require_tool`]), never a silent skip.

mod audit;
mod bundle;
mod census;
mod conmon;
mod containerd;
mod crilog;
mod dirs;
mod fakeruntime;
mod leftovers;
mod native;
mod packets;
mod pty;
pub mod soak;
mod taskshim;
mod tools;
mod wait;

pub use audit::{AT_THE_END, Bounds, excesses, shims_of, within_bounds, within_bounds_async};
pub use bundle::{Bundle, rootfs};
pub use census::{
    fds, parent_of, private_dirty_kib, process_alive, process_children, pss_kib, start_time, threads,
    wakeups, zombies_of,
};
pub use conmon::{AttachClient, Conmon, Pipes, Running, pass_fds, process, write_fifo};
pub use containerd::{Containerd, Event, Events, IMAGE, OURS, PEER};
pub use crilog::{Record, parse_cri, read_cri, rejoin};
pub use dirs::{TempDir, unique_id};
pub use fakeruntime::{Act, FakeRuntime, start_and_fail};
pub use leftovers::Leftovers;
pub use native::{Container, Native};
pub use packets::connect_packets;
pub use pty::PtyChild;
pub use taskshim::{Caller, Fifos, Refused, Sink, Start, Task, TaskShim, Told, tally};
pub use tools::{
    conmon, containerd_shim, crun, door, full, is_cgroup2, newer_criu, other_shims, pintle, require_tool,
    runc, runtimes, scaled, shim,
};
pub use wait::{
    DEADLINE, eventually, let_pass, let_pass_async, output_within, wait_exit, wait_for, wait_for_async,
};
