//! The kernel interface of the pintle container monitor: a safe API over the system calls it needs.

pub mod atomic;
pub mod bytes;
pub mod clock;
pub mod daemon;
pub mod datagram;
pub mod disposition;
pub mod fdpass;
pub mod fork;
pub mod inherit;
pub mod mem;
pub mod mount;
pub mod peer;
pub mod pidfd;
pub mod process;
pub mod pty;
pub mod sandbox;
pub mod seqpacket;
pub mod signals;
pub mod startup;
pub mod watch;
pub mod zone;
