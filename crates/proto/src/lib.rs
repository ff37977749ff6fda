//! Generated protocol.
