//! The exit record: what stays readable about a container after its shim is gone.

use crate::cgroup::{OomLevel, OomVerdict};
use crate::exit::{Exit, UnknownReason};
use crate::wall::WallTime;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde_json::{Map, Value};

/// Version of the record's layout; readers accept this and older ones.
pub const RECORD_VERSION: u64 = 1;

/// Everything known about the end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRecord {
    /// Container id.
    pub id: String,
    /// Exec id; empty for init.
    pub exec_id: String,
    /// Pid in the shim's pid namespace; 0 if it never ran.
    pub pid: i32,
    /// How it ended.
    pub exit: Exit,
    /// OOM facts; for an exec all zero.
    pub oom: OomVerdict,
    /// When the runtime was told to start it.
    pub started_at: Option<WallTime>,
    /// When the shim reaped it (or, if unknown, noticed that it was gone).
    pub finished_at: WallTime,
    /// The kernel's boot id at that time.
    pub boot_id: String,
    /// Bytes of output that did not reach the log, all causes together.
    pub log_bytes_lost: u64,
    /// True if output was cut off because some process still held the streams after the drain bound.
    pub output_leaked: bool,
}

fn number<T: Into<Value>>(map: &mut Map<String, Value>, key: &str, value: T) {
    map.insert(key.to_string(), value.into());
}

impl ExitRecord {
    /// One JSON object with a final newline.
    pub fn to_json(&self) -> Vec<u8> {
        let mut map = Map::new();
        number(&mut map, "version", RECORD_VERSION);
        number(&mut map, "id", self.id.as_str());
        if !self.exec_id.is_empty() {
            number(&mut map, "exec_id", self.exec_id.as_str());
        }
        number(&mut map, "pid", self.pid);
        match self.exit {
            Exit::Code(code) => number(&mut map, "code", code),
            Exit::Signal { signal, core } => {
                number(&mut map, "signal", signal);
                number(&mut map, "core_dumped", core);
            }
            Exit::Unknown(reason) => number(&mut map, "unknown", reason.as_str()),
        }
        number(&mut map, "exit_code", self.exit.shell_code());
        number(&mut map, "oom_killed", self.oom.init_killed);
        number(&mut map, "oom_kills", self.oom.kills);
        number(&mut map, "oom_limit_hits", self.oom.limit_hits);
        if let Some(level) = self.oom.level {
            number(&mut map, "oom_level", level.as_str());
        }
        if let Some(started) = self.started_at {
            number(&mut map, "started_at", started.to_rfc3339());
            number(&mut map, "started_at_nanos", started.unix_nanos());
        }
        number(&mut map, "finished_at", self.finished_at.to_rfc3339());
        number(&mut map, "finished_at_nanos", self.finished_at.unix_nanos());
        number(&mut map, "boot_id", self.boot_id.as_str());
        number(&mut map, "log_bytes_lost", self.log_bytes_lost);
        number(&mut map, "output_leaked", self.output_leaked);
        let mut out = serde_json::to_vec(&Value::Object(map)).unwrap_or_default();
        out.push(b'\n');
        out
    }

    /// Reads a record. `None` if the bytes are not a whole record of a known version.
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let doc: Value = serde_json::from_slice(bytes).ok()?;
        let text = |key: &str| doc.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let int = |key: &str| doc.get(key).and_then(Value::as_i64);
        let count = |key: &str| doc.get(key).and_then(Value::as_u64).unwrap_or(0);
        let truth = |key: &str| doc.get(key).and_then(Value::as_bool).unwrap_or(false);
        if doc.get("version")?.as_u64()? > RECORD_VERSION {
            return None;
        }
        let exit = if let Some(code) = int("code") {
            Exit::Code(u8::try_from(code).ok()?)
        } else if let Some(signal) = int("signal") {
            Exit::Signal { signal: i32::try_from(signal).ok()?, core: truth("core_dumped") }
        } else if text("unknown") == UnknownReason::Rebooted.as_str() {
            Exit::Unknown(UnknownReason::Rebooted)
        } else if doc.get("unknown").is_some() {
            Exit::Unknown(UnknownReason::MonitorLost)
        } else {
            return None;
        };
        Some(Self {
            id: text("id"),
            exec_id: text("exec_id"),
            pid: i32::try_from(int("pid").unwrap_or(0)).ok()?,
            exit,
            oom: OomVerdict {
                kills: count("oom_kills"),
                limit_hits: count("oom_limit_hits"),
                level: OomLevel::parse(&text("oom_level")),
                init_killed: truth("oom_killed"),
            },
            started_at: int("started_at_nanos").map(WallTime::from_unix_nanos),
            finished_at: WallTime::from_unix_nanos(int("finished_at_nanos")?),
            boot_id: text("boot_id"),
            log_bytes_lost: count("log_bytes_lost"),
            output_leaked: truth("output_leaked"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exits() -> impl Strategy<Value = Exit> {
        prop_oneof![
            any::<u8>().prop_map(Exit::Code),
            (1i32..65, any::<bool>()).prop_map(|(signal, core)| Exit::Signal { signal, core }),
            Just(Exit::Unknown(UnknownReason::MonitorLost)),
            Just(Exit::Unknown(UnknownReason::Rebooted)),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(
            id in "\\PC{0,20}", exit in exits(), pid in any::<i32>(), kills in any::<u64>(), start in any::<Option<i64>>(),
            end in any::<i64>(), lost in any::<u64>(), flags in any::<(bool, bool)>(), level in 0usize..4,
        ) {
            let level = [None, Some(OomLevel::Own), Some(OomLevel::Ancestor), Some(OomLevel::System)][level];
            let record = ExitRecord {
                id, exec_id: String::new(), pid, exit,
                oom: OomVerdict { kills, limit_hits: 1, level, init_killed: flags.0 },
                started_at: start.map(WallTime::from_unix_nanos), finished_at: WallTime::from_unix_nanos(end),
                boot_id: "b".to_string(), log_bytes_lost: lost, output_leaked: flags.1,
            };
            prop_assert_eq!(ExitRecord::from_json(&record.to_json()), Some(record));
        }

        #[test]
        fn reading_never_panics(bytes in any::<Vec<u8>>(), cut in 0usize..200) {
            let _ = ExitRecord::from_json(&bytes);
            let whole = br#"{"version":1,"code":3,"finished_at_nanos":5,"id":"x"}"#;
            let _ = ExitRecord::from_json(&whole[..cut.min(whole.len())]);
        }
    }
}
