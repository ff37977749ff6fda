//! crates/cli.

fn main() {}
