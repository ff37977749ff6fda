//! The shim's program: the name it is called by leads to one of the doors.

use std::process::ExitCode;

use pintle_shim::{door, engine::sandbox};

fn main() -> ExitCode {
    if let Err(message) = sandbox::enter() {
        eprintln!("pintle-shim: {message}");
        return ExitCode::FAILURE;
    }
    let mut args = std::env::args_os();
    let own = args.next().unwrap_or_default();
    let name = std::path::Path::new(&own).file_name().unwrap_or_default().to_string_lossy();
    if name == "conmon" {
        return door::conmon::main(args);
    }
    let args: Vec<_> = args.collect();
    if name.starts_with("containerd-shim-") || door::containerd::is_ours(&args) {
        return door::containerd::main(args);
    }
    door::native::main(args)
}
