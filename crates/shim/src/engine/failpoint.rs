//! Places where a test may have the shim die, as if it was killed there. Only in builds for development.

/// Dies here if the environment variable `PINTLE_FAILPOINT` holds this name.
#[cfg(debug_assertions)]
pub fn reached(name: &str) {
    if std::env::var_os("PINTLE_FAILPOINT").is_some_and(|wanted| wanted == name) {
        eprintln!("failpoint {name}");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Nothing in a program that is shipped.
#[cfg(not(debug_assertions))]
pub fn reached(_name: &str) {}
