//! The messages of containerd's runtime v2 shims, generated from `proto/containerd` by `cargo xtask codegen`.
//!
//! The files leave out everything a shim never sees. Type names inside an `Any` are bare full names here:
//! containerd does not know the `type.googleapis.com/` prefix.

use protobuf::Message;
use protobuf::well_known_types::any::Any;

#[rustfmt::skip]
pub mod bootstrap;
#[rustfmt::skip]
pub mod events;
#[rustfmt::skip]
pub mod events_ttrpc;
#[rustfmt::skip]
pub mod linux_runc;
#[rustfmt::skip]
pub mod metrics_v1;
#[rustfmt::skip]
pub mod metrics_v2;
#[rustfmt::skip]
pub mod runc_options;
#[rustfmt::skip]
pub mod runtime_info;
#[rustfmt::skip]
pub mod runtime_options;
#[rustfmt::skip]
pub mod task;
#[rustfmt::skip]
pub mod task_events;
#[rustfmt::skip]
pub mod task_ttrpc;

/// Name of the task service containerd 1.6 and 1.7 and CRI-O call.
pub const TASK_V2: &str = "containerd.task.v2.Task";
/// Name of the task service containerd 2.x calls where version 3 was announced.
pub const TASK_V3: &str = "containerd.task.v3.Task";

/// A message that travels inside an `Any`.
pub trait Named: Message {
    /// Full name of the message, which is also its type URL.
    const FULL_NAME: &'static str;
}

macro_rules! named {
    ($($ty:path => $name:literal),* $(,)?) => {
        $(impl Named for $ty { const FULL_NAME: &'static str = $name; })*
    };
}

named! {
    task_events::TaskCreate => "containerd.events.TaskCreate",
    task_events::TaskStart => "containerd.events.TaskStart",
    task_events::TaskDelete => "containerd.events.TaskDelete",
    task_events::TaskExit => "containerd.events.TaskExit",
    task_events::TaskOOM => "containerd.events.TaskOOM",
    task_events::TaskExecAdded => "containerd.events.TaskExecAdded",
    task_events::TaskExecStarted => "containerd.events.TaskExecStarted",
    task_events::TaskPaused => "containerd.events.TaskPaused",
    task_events::TaskResumed => "containerd.events.TaskResumed",
    task_events::TaskCheckpointed => "containerd.events.TaskCheckpointed",
    runc_options::Options => "containerd.runc.v1.Options",
    runc_options::CheckpointOptions => "containerd.runc.v1.CheckpointOptions",
    runc_options::ProcessDetails => "containerd.runc.v1.ProcessDetails",
    linux_runc::CreateOptions => "containerd.linux.runc.CreateOptions",
    linux_runc::CheckpointOptions => "containerd.linux.runc.CheckpointOptions",
    runtime_options::Options => "runtimeoptions.v1.Options",
    bootstrap::BootstrapParams => "containerd.runtime.bootstrap.v1.BootstrapParams",
    metrics_v1::Metrics => "io.containerd.cgroups.v1.Metrics",
    metrics_v2::Metrics => "io.containerd.cgroups.v2.Metrics",
}

/// Wraps a message the way containerd does: the bare full name as type URL.
pub fn pack<M: Named>(message: &M) -> Any {
    Any {
        type_url: M::FULL_NAME.to_owned(),
        // Encoding to memory fails only for a message of 2 GiB, and proto3 has no required fields.
        value: message.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}

/// The part of a type URL after the last slash.
pub fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Decodes an `Any` if it is of the wanted type, with or without a prefix before the name.
pub fn unpack<M: Named>(any: &Any) -> Option<protobuf::Result<M>> {
    (type_name(any) == M::FULL_NAME).then(|| M::parse_from_bytes(&any.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_are_bare_and_prefixes_are_understood() {
        let exit = task_events::TaskExit { id: "x".into(), exit_status: 137, ..Default::default() };
        let mut any = pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        any.type_url.insert_str(0, "type.googleapis.com/");
        assert_eq!(unpack::<task_events::TaskExit>(&any).unwrap().unwrap(), exit);
        assert!(unpack::<task_events::TaskStart>(&any).is_none());
    }
}
