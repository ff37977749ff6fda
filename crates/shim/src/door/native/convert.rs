//! Between the engine's terms and the wire.

use crate::engine::container::Container;
use crate::engine::events::{Event, EventKind};
use crate::engine::exec::Exec;
use crate::engine::failure::{Failure, FailureKind};
use crate::engine::hub::Hub;
use crate::engine::spec::{CreateSpec, LogSpec, RuntimeSpec};
use crate::engine::stats::Stats;
use pintle_core::cgroup::OomVerdict;
use pintle_core::exit::Exit;
use pintle_core::life::Status;
use pintle_core::record::ExitRecord;
use pintle_core::wall::WallTime;
use pintle_proto::monitor as wire;
use protobuf::{EnumOrUnknown, Message, MessageField};
use std::path::PathBuf;

pub(super) fn nanos(time: Option<WallTime>) -> i64 {
    time.map_or(0, WallTime::unix_nanos)
}

pub(in crate::door) fn unsigned(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

/// A failure as a ttrpc status with its details.
pub(super) fn error(failure: Failure) -> ttrpc::Error {
    use ttrpc::Code as C;
    use wire::ErrorCode as W;
    let (code, status) = match failure.kind {
        FailureKind::InvalidArgument => (W::INVALID_ARGUMENT, C::INVALID_ARGUMENT),
        FailureKind::NotFound => (W::NOT_FOUND, C::NOT_FOUND),
        FailureKind::AlreadyExists => (W::ALREADY_EXISTS, C::ALREADY_EXISTS),
        FailureKind::FailedPrecondition => (W::FAILED_PRECONDITION, C::FAILED_PRECONDITION),
        FailureKind::RuntimeFailed => (W::RUNTIME_FAILED, C::UNKNOWN),
        FailureKind::RuntimeNotFound => (W::RUNTIME_NOT_FOUND, C::UNKNOWN),
        FailureKind::System => (W::SYSTEM, C::INTERNAL),
        FailureKind::DeadlineExceeded => (W::DEADLINE_EXCEEDED, C::DEADLINE_EXCEEDED),
        FailureKind::ResourceExhausted => (W::RESOURCE_EXHAUSTED, C::RESOURCE_EXHAUSTED),
        FailureKind::Unsupported => (W::UNSUPPORTED, C::UNIMPLEMENTED),
        FailureKind::Unavailable => (W::UNAVAILABLE, C::UNAVAILABLE),
    };
    let info = wire::ErrorInfo {
        code: EnumOrUnknown::new(code),
        object: failure.object,
        runtime_message: failure.runtime_message,
        runtime_status: failure.runtime_status,
        errno: failure.errno,
        ..Default::default()
    };
    let mut answer = ttrpc::get_status(status, failure.message);
    let detail = ttrpc::proto::Any {
        type_url: "type.googleapis.com/pintle.monitor.v1.ErrorInfo".to_owned(),
        value: info.write_to_bytes().unwrap_or_default(),
        ..Default::default()
    };
    answer.details.push(detail);
    ttrpc::Error::RpcStatus(answer)
}

/// Fills in how it ended.
pub(in crate::door) fn how(out: &mut wire::Exit, exit: Exit) {
    match exit {
        Exit::Code(code) => {
            out.kind = wire::ExitKind::CODE.into();
            out.code = i32::from(code);
        }
        Exit::Signal { signal, core } => {
            out.kind = wire::ExitKind::SIGNAL.into();
            out.signal = signal;
            out.core_dumped = core;
        }
        Exit::Unknown(reason) => {
            out.kind = wire::ExitKind::UNKNOWN.into();
            out.reason = reason.as_str().to_owned();
        }
    }
}

pub(super) fn exit(record: &ExitRecord) -> wire::Exit {
    let mut out = wire::Exit {
        status: unsigned(record.exit.shell_code()),
        oom_killed: record.oom.init_killed,
        started_at: nanos(record.started_at),
        finished_at: record.finished_at.unix_nanos(),
        boot_id: record.boot_id.clone(),
        ..Default::default()
    };
    how(&mut out, record.exit);
    out
}

pub(super) fn field<T>(value: Option<T>) -> MessageField<T> {
    match value {
        Some(value) => MessageField::some(value),
        None => MessageField::none(),
    }
}

pub(super) fn status(status: Status) -> EnumOrUnknown<wire::Status> {
    match status {
        Status::Creating => wire::Status::CREATING,
        Status::Created => wire::Status::CREATED,
        Status::Running => wire::Status::RUNNING,
        Status::Paused => wire::Status::PAUSED,
        Status::Stopped => wire::Status::STOPPED,
        Status::Deleted => wire::Status::DELETED,
    }
    .into()
}

pub(super) fn event(event: Event) -> wire::Event {
    use wire::EventKind as W;
    let kind = match event.kind {
        EventKind::Created => W::CREATED,
        EventKind::Started => W::STARTED,
        EventKind::ExecStarted => W::EXEC_STARTED,
        EventKind::ExecExited => W::EXEC_EXITED,
        EventKind::Exited => W::EXITED,
        EventKind::Oom => W::OOM,
        EventKind::Paused => W::PAUSED_EVENT,
        EventKind::Resumed => W::RESUMED,
        EventKind::LogReopened => W::LOG_REOPENED,
        EventKind::BytesLost => W::BYTES_LOST,
        EventKind::ClientDropped => W::CLIENT_DROPPED,
        EventKind::Updated => W::UPDATED,
        EventKind::Checkpointed => W::CHECKPOINTED,
        EventKind::Restored => W::RESTORED,
        EventKind::Deleted => W::DELETED_EVENT,
        EventKind::Upgraded => W::UPGRADED,
        EventKind::Adopted => W::ADOPTED,
        EventKind::EventsLost => W::EVENTS_LOST,
    };
    wire::Event {
        sequence: event.sequence,
        at: event.at.unix_nanos(),
        kind: kind.into(),
        exec_id: event.exec_id,
        pid: unsigned(event.pid),
        exit: field(event.exit.as_ref().map(exit)),
        attributes: event.attributes.into_iter().collect(),
        ..Default::default()
    }
}

fn size(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

pub(in crate::door) fn pair(rows: u32, columns: u32) -> (u16, u16) {
    (size(rows), size(columns))
}

fn path(text: String) -> Option<PathBuf> {
    Some(text).filter(|t| !t.is_empty()).map(PathBuf::from)
}

pub(super) fn create_spec(
    request: wire::CreateRequest,
    bundle: Option<&PathBuf>,
    runtime: &str,
) -> CreateSpec {
    let options = request.runtime.into_option().unwrap_or_default();
    CreateSpec {
        bundle: path(request.bundle).or_else(|| bundle.cloned()).unwrap_or_default(),
        runtime: RuntimeSpec {
            path: if options.path.is_empty() { runtime.to_owned() } else { options.path },
            root: options.root,
            args: options.args,
            systemd_cgroup: options.systemd_cgroup,
            create_args: options.create_args,
            exec_args: options.exec_args,
        },
        logs: request
            .logs
            .into_iter()
            .map(|l| LogSpec {
                driver: l.driver,
                path: l.path.into(),
                max_size: l.max_size,
                max_files: l.max_files,
                global_max_size: l.global_max_size,
                max_bytes_per_second: l.max_bytes_per_second,
                max_lines_per_second: l.max_lines_per_second,
                drop_over_rate: l.drop_over_rate,
                close_partial: l.close_partial,
                tag: l.tag,
                labels: l.labels,
                name: l.name,
            })
            .collect(),
        stdin: request.stdin,
        stdin_once: request.stdin_once,
        columns: size(request.columns),
        rows: size(request.rows),
        pid_file: path(request.pid_file),
        timeout_ms: Some(request.timeout_ms).filter(|t| *t > 0),
        drain_ms: Some(request.drain_ms).filter(|t| *t > 0),
        env: request.env,
        exit_dir: path(request.exit_dir),
        exit_command: request.exit_command,
    }
}

fn runtime_options(spec: &RuntimeSpec) -> wire::RuntimeOptions {
    wire::RuntimeOptions {
        path: if spec.path.is_empty() { "runc".to_owned() } else { spec.path.clone() },
        root: spec.root.clone(),
        args: spec.args.clone(),
        systemd_cgroup: spec.systemd_cgroup,
        create_args: spec.create_args.clone(),
        exec_args: spec.exec_args.clone(),
        ..Default::default()
    }
}

pub(super) fn counters(hub: Option<&Hub>) -> wire::IoCounters {
    let Some(hub) = hub else { return wire::IoCounters::default() };
    let c = hub.counters();
    wire::IoCounters {
        stdout_bytes: c.read[0],
        stderr_bytes: c.read[1],
        stdin_bytes: c.stdin,
        lost_bytes: c.losses.iter().map(|(cause, bytes)| (cause.name(), bytes)).collect(),
        clients: u32::try_from(c.clients).unwrap_or(u32::MAX),
        clients_dropped: c.dropped,
        reopened: c.reopened,
        ..Default::default()
    }
}

pub(super) fn oom(verdict: OomVerdict) -> wire::OomCounters {
    wire::OomCounters { oom_kills: verdict.kills, oom_events: verdict.limit_hits, ..Default::default() }
}

fn exec_state(exec: &Exec) -> wire::ExecState {
    let end = exec.exit();
    wire::ExecState {
        exec_id: exec.id.clone(),
        pid: unsigned(exec.pid),
        status: if end.is_some() { wire::Status::STOPPED } else { wire::Status::RUNNING }.into(),
        exit: field(end.as_ref().map(exit)),
        terminal: exec.terminal,
        ..Default::default()
    }
}

/// The container's verdict on OOM now: the record's once there is one.
pub(super) fn verdict(container: &Container) -> OomVerdict {
    match container.exit() {
        Some(record) => record.oom,
        None => container.lock().oom.as_ref().map(|o| o.verdict(false)).unwrap_or_default(),
    }
}

pub(super) fn state(container: &Container) -> wire::StateResponse {
    let end = container.exit();
    let verdict = verdict(container);
    let inner = container.lock();
    let spec = inner.spec.as_ref();
    let log = spec.and_then(|s| s.logs.iter().find(|l| !l.path.as_os_str().is_empty()));
    wire::StateResponse {
        id: container.id.clone(),
        status: status(inner.life.status()),
        pid: unsigned(inner.pid),
        pid_start: inner.pid_start,
        bundle: spec.map(|s| s.bundle.display().to_string()).unwrap_or_default(),
        created_at: nanos(inner.created_at),
        started_at: nanos(inner.started_at),
        exit: field(end.as_ref().map(exit)),
        execs: inner.execs.values().map(|e| exec_state(e)).collect(),
        io: MessageField::some(counters(inner.hub.as_deref())),
        oom: MessageField::some(oom(verdict)),
        terminal: inner.facts.terminal,
        last_event: container.events.last(),
        log_path: log.map(|l| l.path.display().to_string()).unwrap_or_default(),
        runtime: field(spec.map(|s| runtime_options(&s.runtime))),
        stopping: inner.stop.is_some(),
        cgroup: inner.cgroups.path().unwrap_or_default().to_owned(),
        ..Default::default()
    }
}

pub(in crate::door) fn stats(stats: &Stats) -> wire::StatsResponse {
    let m = &stats.memory;
    let c = &stats.cpu;
    wire::StatsResponse {
        at: pintle_sys::clock::wall().unix_nanos(),
        cgroup_version: stats.cgroup_version,
        cpu: MessageField::some(wire::CpuStats {
            usage_ns: c.usage_ns,
            user_ns: c.user_ns,
            system_ns: c.system_ns,
            periods: c.periods,
            throttled_periods: c.throttled_periods,
            throttled_ns: c.throttled_ns,
            per_cpu_ns: c.per_cpu_ns.clone(),
            ..Default::default()
        }),
        memory: MessageField::some(wire::MemoryStats {
            usage: m.usage,
            working_set: m.working_set,
            rss: m.rss,
            cache: m.cache,
            swap: m.swap,
            limit: m.limit,
            max_usage: m.max_usage,
            fail_count: m.fail_count,
            page_faults: m.stat("pgfault"),
            major_page_faults: m.stat("pgmajfault"),
            kernel: m.kernel,
            kernel_tcp: m.kernel_tcp,
            swap_limit: m.swap_limit,
            inactive_file: m.stat("inactive_file"),
            active_file: m.stat("active_file"),
            inactive_anon: m.stat("inactive_anon"),
            active_anon: m.stat("active_anon"),
            mapped_file: m.stat("mapped_file").max(m.stat("file_mapped")),
            raw: m.raw.iter().cloned().collect(),
            ..Default::default()
        }),
        pids: MessageField::some(wire::PidsStats {
            current: stats.pids,
            limit: stats.pids_limit,
            ..Default::default()
        }),
        blkio: stats
            .blkio
            .iter()
            .map(|b| wire::BlkioEntry {
                major: b.major,
                minor: b.minor,
                op: b.op.clone(),
                bytes: b.bytes,
                operations: b.operations,
                ..Default::default()
            })
            .collect(),
        hugetlb: stats
            .hugetlb
            .iter()
            .map(|h| wire::HugetlbStats {
                page_size: h.page_size.clone(),
                usage: h.usage,
                max_usage: h.max_usage,
                fail_count: h.fail_count,
                ..Default::default()
            })
            .collect(),
        network: stats
            .network
            .iter()
            .map(|n| wire::NetworkStats {
                name: n.name.clone(),
                rx_bytes: n.rx[0],
                rx_packets: n.rx[1],
                rx_errors: n.rx[2],
                rx_dropped: n.rx[3],
                tx_bytes: n.tx[0],
                tx_packets: n.tx[1],
                tx_errors: n.tx[2],
                tx_dropped: n.tx[3],
                ..Default::default()
            })
            .collect(),
        pressure: stats
            .pressure
            .iter()
            .map(|p| wire::PressureStats {
                resource: p.resource.clone(),
                some: p.some.clone(),
                full: p.full.clone(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}
