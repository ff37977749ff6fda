//! `PINTLE_SANDBOX`: the shim confines itself (docs/adr/0023-sandbox.md).

use pintle_sys::sandbox::{confine_descendants, confine_process};

/// Confines the process as the environment variable `PINTLE_SANDBOX` says; the first thing that a program does.
/// Not set, empty or `0`: not at all. `process`: the shim alone. `all`: also what it executes, the container included.
///
/// # Errors
/// If the variable has another value, or the kernel refuses: a shim that was to be confined does not run without.
pub fn enter() -> Result<(), String> {
    let Some(wish) = std::env::var_os("PINTLE_SANDBOX") else { return Ok(()) };
    let result = match wish.to_str() {
        Some("" | "0") => return Ok(()),
        Some("process") => confine_process(),
        Some("all") => confine_process().and_then(|()| confine_descendants()),
        _ => return Err(format!("PINTLE_SANDBOX is {wish:?}, not 0, process or all")),
    };
    result.map_err(|e| format!("PINTLE_SANDBOX: confine the process: {e}"))
}
