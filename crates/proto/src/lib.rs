//! Generated protocol of pintle and its version constants; nothing is written by hand in the modules.
//!
//! `cargo xtask codegen` makes them from `/proto`.

/// The native protocol, package `pintle.monitor.v1`.
#[rustfmt::skip]
#[allow(clippy::all, missing_docs, unreachable_pub, unused)]
pub mod monitor {
    #[path = "monitor.rs"]
    mod messages;
    #[path = "monitor_ttrpc.rs"]
    pub mod service;
    pub use messages::*;
    // The generated service names its messages by this module path.
    use self::messages as monitor;
}

/// containerd's runtime v2 shim protocol.
#[allow(clippy::all, missing_docs, unused)]
pub mod containerd;

/// Minor version of the native protocol: grows with each addition.
pub const PROTOCOL_MINOR: u32 = 1;
/// Version of the state that a shim hands to its successor at an upgrade.
pub const STATE_VERSION: u32 = 1;
