//! The options that stand before the command, and how a container is found.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use lexopt::prelude::*;
use pintle_client::{Monitor, RuntimeOptions, SpawnConfig};

use crate::args::{self, text};

/// What every command may need.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Directory of the state directories.
    pub(crate) root: PathBuf,
    /// How the runtime is called.
    pub(crate) runtime: RuntimeOptions,
    /// Executable of the shim.
    pub(crate) shim: PathBuf,
    /// Print JSON.
    pub(crate) json: bool,
}

impl Context {
    /// State directory of a container.
    ///
    /// # Errors
    /// When the id cannot be the name of a directory.
    pub(crate) fn dir(&self, id: &str) -> Result<PathBuf> {
        args::check_id(id)?;
        Ok(self.root.join(id))
    }

    /// A handle on a container's shim.
    pub(crate) fn monitor(&self, id: &str) -> Result<Monitor> {
        Ok(Monitor::at(self.dir(id)?))
    }

    /// How to start a shim for this container.
    pub(crate) fn spawn(&self, id: &str) -> SpawnConfig {
        let mut config = SpawnConfig::new(id);
        config.root.clone_from(&self.root);
        config.shim.clone_from(&self.shim);
        config
    }
}

/// Reads what stands before the command: the context, the command, its arguments. None for help.
pub(crate) fn parse(args: Vec<OsString>) -> Result<Option<(Context, String, Vec<OsString>)>> {
    let mut cx = Context {
        root: pintle_client::default_root(),
        runtime: RuntimeOptions::default(),
        shim: pintle_client::default_shim(),
        json: false,
    };
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("root") => cx.root = absolute(parser.value()?)?,
            Long("runtime") => cx.runtime.path = parser.value()?.into(),
            Long("runtime-root") => cx.runtime.root = absolute(parser.value()?)?,
            Long("systemd-cgroup") => cx.runtime.systemd_cgroup = true,
            Long("shim") => cx.shim = parser.value()?.into(),
            Long("json") => cx.json = true,
            Long("version") => return Ok(Some((cx, "version".into(), Vec::new()))),
            Short('h') | Long("help") => return Ok(None),
            Value(command) => {
                let command = text(command)?;
                let mut rest: Vec<OsString> = parser.raw_args()?.collect();
                if command == "help" {
                    let Some(about) = rest.into_iter().next() else { return Ok(None) };
                    return Ok(Some((cx, text(about)?, vec!["--help".into()])));
                }
                // `--json` is also taken behind the command, up to the program to run.
                let end = rest.iter().position(|a| a == "--").unwrap_or(rest.len());
                if !matches!(command.as_str(), "run" | "exec" | "create") {
                    if let Some(at) = rest[..end].iter().position(|a| a == "--json") {
                        rest.remove(at);
                        cx.json = true;
                    }
                }
                return Ok(Some((cx, command, rest)));
            }
            other => return Err(args::usage(other.unexpected())),
        }
    }
    Ok(None)
}

/// The path, made absolute by the working directory but with its links left alone.
pub(crate) fn absolute(path: OsString) -> Result<PathBuf> {
    Ok(std::path::absolute(path)?)
}
