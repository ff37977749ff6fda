//! `PINTLE_SANDBOX`: the shim confines itself (docs/adr/0023-sandbox.md).

use pintle_sys::sandbox;

/// Confines the process if the environment variable `PINTLE_SANDBOX` is `1`; the first thing that a program does.
/// Not set, empty or `0`, nothing happens.
///
/// # Errors
/// If the variable has another value, or the kernel refuses: a shim that was to be confined does not run without.
pub fn enter() -> Result<(), String> {
    match std::env::var_os("PINTLE_SANDBOX") {
        None => Ok(()),
        Some(value) if value.is_empty() || value == "0" => Ok(()),
        Some(value) if value == "1" => {
            sandbox::confine().map_err(|e| format!("PINTLE_SANDBOX: confine the process: {e}"))
        }
        Some(value) => Err(format!("PINTLE_SANDBOX is {value:?}, not 0 or 1")),
    }
}
