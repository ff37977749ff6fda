//! A runtime that misbehaves where it is told to and otherwise hands over to runc.

use std::path::{Path, PathBuf};

use crate::tools::{runc, write_program};

/// What the fake runtime does at one operation.
#[derive(Debug, Clone)]
pub enum Act {
    /// Never returns.
    Hang,
    /// Writes this to standard error and exits with this code.
    Fail(String, i32),
    /// Writes this many bytes to standard error, then does what runc does.
    FloodStderr(usize),
    /// Kills itself by this signal.
    Die(i32),
    /// Prints this to standard output and exits with 0, having done nothing.
    Nonsense(String),
    /// Waits this many seconds first.
    Delay(f64),
    /// Does what runc does and then this much of shell.
    Then(String),
    /// This much of shell instead; the arguments are in `"$@"`, runc in `$RUNC`.
    Script(String),
}

/// A fake runtime in the making.
#[derive(Debug, Default)]
pub struct FakeRuntime {
    acts: Vec<(String, Act)>,
}

impl FakeRuntime {
    /// One that behaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Misbehaves at `operation` (`create`, `start`, `exec`, `kill`, `delete`, ...).
    #[must_use]
    pub fn on(mut self, operation: &str, act: Act) -> Self {
        self.acts.push((operation.to_string(), act));
        self
    }

    /// Writes the program into `dir` and returns its path. Each call is noted in `dir/calls`.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("fake-runtime");
        let quote = |s: &str| format!("'{}'", s.replace('\'', r"'\''"));
        let mut cases = String::new();
        for (operation, act) in &self.acts {
            let body = match act {
                // One process, so that nothing of it outlives its kill.
                Act::Hang => "exec sleep 1000000".to_string(),
                Act::Fail(text, code) => format!("printf '%s\\n' {} >&2; exit {code}", quote(text)),
                Act::FloodStderr(n) => {
                    format!("head -c {n} /dev/zero | tr '\\0' x >&2; exec \"$RUNC\" \"$@\"")
                }
                Act::Die(signal) => format!("kill -{signal} $$"),
                Act::Nonsense(text) => format!("printf '%s\\n' {}; exit 0", quote(text)),
                Act::Delay(seconds) => format!("sleep {seconds}; exec \"$RUNC\" \"$@\""),
                Act::Then(script) => format!("\"$RUNC\" \"$@\"; rc=$?; {script}; exit $rc"),
                Act::Script(script) => script.clone(),
            };
            cases.push_str(&format!("  {operation}) {body} ;;\n"));
        }
        let text = format!(
            "#!/bin/sh\nRUNC={runc}\nop=\nfor a in \"$@\"; do case $a in\n  \
             create|start|exec|kill|delete|state|pause|resume|update|checkpoint|restore|run|features|events|ps|list) \
             op=$a; break;;\nesac; done\nprintf '%s\\n' \"$op $*\" >>{calls}\n\
             case $op in\n{cases}esac\nexec \"$RUNC\" \"$@\"\n",
            runc = quote(&runc().to_string_lossy()),
            calls = quote(&dir.join("calls").to_string_lossy()),
        );
        write_program(&path, &text);
        path
    }

    /// The calls so far, `operation arguments...`.
    pub fn calls(dir: &Path) -> Vec<String> {
        std::fs::read_to_string(dir.join("calls")).unwrap_or_default().lines().map(str::to_string).collect()
    }
}

/// For [`Act::Script`] at `exec`: starts a process, writes its pid where the caller asked for it and into `copy`, and
/// fails all the same.
pub fn start_and_fail(copy: &Path) -> String {
    format!(
        "while [ $# -gt 0 ]; do [ \"$1\" = --pid-file ] && file=$2; shift; done\n\
         sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >\"$file\"; echo $! >'{}'; echo too late >&2; exit 1",
        copy.display()
    )
}
