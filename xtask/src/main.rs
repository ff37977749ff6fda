//! Tasks of the repository: `cargo xtask COMMAND`.

mod codegen;

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository");
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("codegen") => codegen::run(root, args.get(1).is_some_and(|a| a == "--check")),
        other => bail!("unknown task {other:?}"),
    }
}
