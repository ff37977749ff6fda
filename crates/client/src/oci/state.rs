//! The state of one container and its document, `state.json`.

use super::{error::Error, process, time::Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};
use std::{collections::BTreeMap, fmt, io};

/// Status of a container, as the OCI runtime prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub enum Status {
    /// No status has been learnt yet; the empty text, and any text nobody knows.
    #[default]
    Unknown,
    /// The runtime is still making the container.
    Creating,
    /// Made, its process waits to be started.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Stopped,
    /// Its processes are frozen. Not a status of the OCI specification; runc and crun print it.
    Paused,
}

impl Status {
    /// The text the runtime prints.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
        }
    }

    /// The status of a text; [`Status::Unknown`] for one that nobody knows.
    pub fn from_text(text: &str) -> Self {
        match text {
            "creating" => Self::Creating,
            "created" => Self::Created,
            "running" => Self::Running,
            "stopped" => Self::Stopped,
            "paused" => Self::Paused,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_text(&String::deserialize(deserializer)?))
    }
}

/// A key that is missing and one that is `null` both mean the default.
fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The state of one container, in memory and in `<dir>/state.json`.
///
/// The first six fields are those of the OCI runtime's state document. Reading ignores unknown
/// keys; writing gives CRI-O's bytes: see [`ContainerState::to_json`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Version of the OCI specification the container was made for.
    #[serde(rename = "ociVersion", deserialize_with = "lenient")]
    pub oci_version: String,
    /// Id of the container; empty before the first status update.
    #[serde(deserialize_with = "lenient")]
    pub id: String,
    /// Status; [`Status::Unknown`] before the first status update.
    #[serde(deserialize_with = "lenient")]
    pub status: Status,
    /// Pid of the init process; 0 once stopped.
    #[serde(deserialize_with = "lenient")]
    pub pid: i32,
    /// Bundle directory.
    #[serde(deserialize_with = "lenient")]
    pub bundle: String,
    /// Annotations of the container's configuration.
    #[serde(deserialize_with = "lenient")]
    pub annotations: BTreeMap<String, String>,
    /// When the container was created. Unlike in CRI-O it never changes afterwards.
    #[serde(deserialize_with = "lenient")]
    pub created: Timestamp,
    /// When it was started; the creation time after a start that failed.
    #[serde(deserialize_with = "lenient")]
    pub started: Timestamp,
    /// When it ended.
    #[serde(deserialize_with = "lenient")]
    pub finished: Timestamp,
    /// Exit code, 128 + n for signal n, 255 if nobody can know it; `None` while not known.
    #[serde(rename = "exitCode")]
    pub exit_code: Option<i32>,
    /// The kernel killed a process of it for want of memory. Never reset.
    #[serde(rename = "oomKilled", deserialize_with = "lenient")]
    pub oom_killed: bool,
    /// A seccomp notifier stopped it. Set by the caller, not by this crate.
    #[serde(rename = "seccompKilled", deserialize_with = "lenient")]
    pub seccomp_killed: bool,
    /// Why its start failed, or what its seccomp notifier saw.
    #[serde(deserialize_with = "lenient")]
    pub error: String,
    /// Pid of the init process, kept after its end; 0 or below: not initialised.
    #[serde(rename = "initPid", deserialize_with = "lenient")]
    pub init_pid: i32,
    /// Start time of that process: field 22 of its stat file, in clock ticks since boot.
    #[serde(rename = "initStartTime", deserialize_with = "lenient")]
    pub init_start_time: String,
    /// When it was last checkpointed.
    #[serde(rename = "checkpointedTime", deserialize_with = "lenient")]
    pub checkpointed_at: Timestamp,
}

impl ContainerState {
    /// Records the init process: its pid and, from `/proc`, its start time.
    ///
    /// # Errors
    /// If both are recorded already, or the start time cannot be read. In the second case the pid
    /// stays recorded all the same, so that liveness checks report the process as gone.
    pub fn set_init_pid(&mut self, pid: i32) -> Result<(), Error> {
        if self.init_pid != 0 || !self.init_start_time.is_empty() {
            return Err(Error::InitPidAlreadySet {
                pid: self.init_pid,
                start_time: self.init_start_time.clone(),
            });
        }
        self.init_pid = pid;
        self.init_start_time = process::start_time(pid)?;
        Ok(())
    }

    /// Reads a document.
    ///
    /// # Errors
    /// If it is not JSON or a field has the wrong type.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        // The encoder ends its document with a newline and decoders read one value, no more.
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter();
        match values.next() {
            Some(state) => state,
            None => serde_json::from_slice(bytes),
        }
    }

    /// The document as CRI-O writes it, byte for byte: key order, zero times written in spite of
    /// being unset, other zero values left out, `<`, `>` and `&` escaped, a newline at the end.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        let mut encoder = serde_json::Serializer::with_formatter(&mut out, HtmlSafe);
        // Writing strings, numbers and booleans to memory cannot fail.
        if self.serialize(&mut encoder).is_err() {
            out.clear();
        }
        out.push(b'\n');
        out
    }
}

impl Serialize for ContainerState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut doc = serializer.serialize_struct("ContainerState", 16)?;
        doc.serialize_field("ociVersion", &self.oci_version)?;
        doc.serialize_field("id", &self.id)?;
        doc.serialize_field("status", &self.status)?;
        if self.pid != 0 {
            doc.serialize_field("pid", &self.pid)?;
        }
        doc.serialize_field("bundle", &self.bundle)?;
        if !self.annotations.is_empty() {
            doc.serialize_field("annotations", &self.annotations)?;
        }
        doc.serialize_field("created", &self.created)?;
        doc.serialize_field("started", &self.started)?;
        doc.serialize_field("finished", &self.finished)?;
        if let Some(code) = self.exit_code {
            doc.serialize_field("exitCode", &code)?;
        }
        if self.oom_killed {
            doc.serialize_field("oomKilled", &true)?;
        }
        if self.seccomp_killed {
            doc.serialize_field("seccompKilled", &true)?;
        }
        if !self.error.is_empty() {
            doc.serialize_field("error", &self.error)?;
        }
        if self.init_pid != 0 {
            doc.serialize_field("initPid", &self.init_pid)?;
        }
        if !self.init_start_time.is_empty() {
            doc.serialize_field("initStartTime", &self.init_start_time)?;
        }
        doc.serialize_field("checkpointedTime", &self.checkpointed_at)?;
        doc.end()
    }
}

/// Writes strings as Go's encoder does by default: safe to embed in HTML.
pub(crate) struct HtmlSafe;

impl serde_json::ser::Formatter for HtmlSafe {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices() {
            let escape = match c {
                '<' => "\\u003c",
                '>' => "\\u003e",
                '&' => "\\u0026",
                '\u{2028}' => "\\u2028",
                '\u{2029}' => "\\u2029",
                _ => continue,
            };
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            writer.write_all(escape.as_bytes())?;
            plain = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "{\"ociVersion\":\"\",\"id\":\"\",\"status\":\"\",\"bundle\":\"\",\
        \"created\":\"0001-01-01T00:00:00Z\",\"started\":\"0001-01-01T00:00:00Z\",\
        \"finished\":\"0001-01-01T00:00:00Z\",\"checkpointedTime\":\"0001-01-01T00:00:00Z\"}\n";

    #[test]
    fn state_empty_document_has_the_known_bytes() {
        let state = ContainerState::default();
        assert_eq!(String::from_utf8(state.to_json()).unwrap(), EMPTY);
        assert_eq!(ContainerState::from_json(EMPTY.as_bytes()).unwrap(), state);
        assert_eq!(ContainerState::from_json(b"{}").unwrap(), state);
    }

    #[test]
    fn state_full_document_keeps_order_and_quirks() {
        let text = "{\"ociVersion\":\"1.0.2\",\"id\":\"c\",\"status\":\"stopped\",\"pid\":7,\
            \"bundle\":\"/b\",\"annotations\":{\"a\":\"\\u003cx\\u0026\\u003e\",\"b\":\"\"},\
            \"created\":\"2024-06-17T10:00:00.5+02:00\",\"started\":\"2024-06-17T10:00:01Z\",\
            \"finished\":\"2024-06-17T10:00:02Z\",\"exitCode\":0,\"oomKilled\":true,\
            \"seccompKilled\":true,\"error\":\"e\",\"initPid\":7,\"initStartTime\":\"22\",\
            \"checkpointedTime\":\"0001-01-01T00:00:00Z\"}\n";
        let state = ContainerState::from_json(text.as_bytes()).unwrap();
        assert_eq!(state.exit_code, Some(0));
        assert_eq!(state.annotations["a"], "<x&>");
        assert_eq!(String::from_utf8(state.to_json()).unwrap(), text);
    }

    #[test]
    fn state_unknown_keys_and_nulls_are_ignored() {
        let text = br#"{"id":null,"annotations":null,"exitCode":null,"rootfs":"/r","owner":"",
            "created":null,"status":"weird"}"#;
        assert_eq!(ContainerState::from_json(text).unwrap(), ContainerState::default());
        assert!(ContainerState::from_json(b"{\"pid\":\"x\"}").is_err());
        assert!(ContainerState::from_json(b"").is_err());
    }

    #[test]
    fn state_status_texts() {
        for status in [
            Status::Unknown,
            Status::Creating,
            Status::Created,
            Status::Running,
            Status::Stopped,
            Status::Paused,
        ] {
            assert_eq!(Status::from_text(status.as_str()), status);
        }
        assert_eq!(Status::Created.to_string(), "created");
        assert_eq!(Status::Paused.to_string(), "paused");
        assert_eq!(Status::Running.to_string(), "running");
        assert_eq!(Status::Stopped.to_string(), "stopped");
    }

    #[test]
    fn set_init_pid_of_a_running_process() {
        let mut state = ContainerState::default();
        state.set_init_pid(std::process::id() as i32).unwrap();
        assert!(state.init_start_time.parse::<u64>().is_ok());
    }

    #[test]
    fn set_init_pid_twice_fails() {
        let mut state = ContainerState::default();
        let pid = std::process::id() as i32;
        state.set_init_pid(pid).unwrap();
        let error = state.set_init_pid(pid).unwrap_err().to_string();
        assert_eq!(error, format!("pid and start time already initialized: {pid} {}", state.init_start_time));
    }

    #[test]
    fn set_init_pid_of_a_dead_process_fails_and_keeps_the_pid() {
        let mut state = ContainerState::default();
        assert!(state.set_init_pid(4_194_305).is_err());
        assert_eq!(state.init_pid, 4_194_305);
    }
}
