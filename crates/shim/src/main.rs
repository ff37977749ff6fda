//! crates/shim.

fn main() {}
