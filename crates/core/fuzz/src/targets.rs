//! What is fuzzed: one function per target. Each takes any bytes and panics only if a promise is broken.
//!
//! `cargo +nightly fuzz run TARGET` searches; the test `corpus` of `pintle-core` runs all of them over the committed
//! corpora and mutations of these with a stable compiler.

use pintle_core::attach::{ClientPacket, LineReader, ShimPacket, parse_ctl, parse_size};
use pintle_core::batch::Batcher;
use pintle_core::cgroup::{
    MemoryEvents, OomCounter, directory, flat_value, limit_value, parse_memory_events, parse_mountinfo,
    parse_populated, parse_proc_cgroup, unified_directory,
};
use pintle_core::line::{LineAssembler, MAX_RECORD, Stream, segments};
use pintle_core::queue::{ClientQueue, QueuePolicy, Verdict};
use pintle_core::rotate::{SizeCounter, SizeLimits, Step};
use pintle_core::time::{STAMP_LEN, Stamper};
use pintle_core::wall::WallTime;
use std::time::Duration;

/// A target: its name, which is also that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const ALL: &[Target] = &[
    ("argv", argv),
    ("attach_client", attach_client),
    ("attach_shim", attach_shim),
    ("ctl", ctl),
    ("cri", cri),
    ("journal", journal),
    ("lines", lines),
    ("assembler", assembler),
    ("notify", notify),
    ("cgroup", cgroup),
    ("runtime_log", runtime_log),
    ("record", record),
    ("rotate", rotate),
    ("queue", queue),
    ("stamp", stamp),
    ("batch", batch),
    ("exit", exit),
    ("oom", oom),
    ("stdio_uri", stdio_uri),
    ("sync", sync),
    ("rate", rate),
    ("jsonlog", jsonlog),
    ("life", life),
    ("detach", detach),
];

/// Command lines, arguments separated by NUL.
pub fn argv(data: &[u8]) {
    use pintle_core::argv::{Kind, Opt, parse};
    const TABLE: &[Opt] = &[
        Opt::new("api-version", None, Kind::Flag, "flag"),
        Opt::new("cid", Some(b'c'), Kind::Text, "text"),
        Opt::new("terminal", Some(b't'), Kind::Flag, "flag"),
        Opt::new("stdin", Some(b'i'), Kind::Flag, "flag"),
        Opt::new("timeout", Some(b'T'), Kind::Int, "int"),
        Opt::new("log-size-max", None, Kind::Long, "long"),
        Opt::new("runtime-opt", None, Kind::Array, "array"),
    ];
    let args: Vec<Vec<u8>> = data.split(|b| *b == 0).map(<[u8]>::to_vec).collect();
    match parse(TABLE, &args) {
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Packets from native clients: what is understood encodes to the same bytes.
pub fn attach_client(data: &[u8]) {
    if let Ok(packet) = ClientPacket::decode(data) {
        let mut again = Vec::new();
        packet.encode(&mut again);
        assert_eq!(again, data);
    }
}

/// Packets from the shim.
pub fn attach_shim(data: &[u8]) {
    if let Ok(packet) = ShimPacket::decode(data) {
        let mut again = Vec::new();
        packet.encode(&mut again);
        assert_eq!(again, data);
    }
}

/// Control lines: any cut of the bytes gives the same commands. The first byte is the size of the pieces.
pub fn ctl(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    let read = |piece: usize| {
        let mut reader = LineReader::new();
        let mut out = Vec::new();
        for piece in data.chunks(piece) {
            reader.push(piece, |line| {
                out.push((line.and_then(|l| parse_ctl(l, 1000)), line.and_then(|l| parse_size(l, u16::MAX))));
            });
        }
        out
    };
    assert_eq!(read(usize::from(*piece).max(1)), read(data.len().max(1)));
}

/// Log records: what is read is what was written, and encoding loses nothing.
pub fn cri(data: &[u8]) {
    if let Ok(record) = pintle_core::cri::parse(data) {
        assert!(record.content.len() <= data.len());
    }
    let mut out = Vec::new();
    pintle_core::cri::encode(&mut out, b"2026-11-23T20:15:45.133617925+00:00", Stream::Stderr, data);
    let mut joined = Vec::new();
    for record in pintle_core::cri::records(&out) {
        let record = record.expect("our own record");
        assert!(record.payload_len() <= MAX_RECORD && record.stream == Stream::Stderr);
        joined.extend_from_slice(record.content);
        if record.complete {
            joined.push(b'\n');
        }
    }
    assert_eq!(joined, data);
    assert_eq!(pintle_core::cri::payload(&out).0, data.len() as u64);
}

/// Docker's log records, the input cut where it has a NUL: a JSON parser gives the output back, each byte that is not
/// UTF-8 as one U+FFFD, and no byte is uncounted.
pub fn jsonlog(data: &[u8]) {
    use pintle_core::jsonlog::{Encoder, MAX_PIECE, payload};
    let now = pintle_core::wall::WallTime::new(1_795_747_320, 120_000_000);
    let _ = payload(data);
    let _ = data.split(|b| *b == b'\n').map(pintle_core::logread::parse).count();
    let (mut encoder, mut out, mut input) = (Encoder::new(), Vec::new(), Vec::new());
    for chunk in data.split(|b| *b == 0) {
        encoder.push(&mut out, now, Stream::Stdout, chunk);
        input.extend_from_slice(chunk);
        assert!(encoder.held().iter().all(|held| held.len() < MAX_PIECE));
    }
    encoder.finish(&mut out, now, Stream::Stdout);
    let mut joined = String::new();
    for line in out.split_inclusive(|b| *b == b'\n') {
        let record: serde_json::Value = serde_json::from_slice(line).expect("our own record");
        let log = record["log"].as_str().expect("a string");
        assert!(
            !log.is_empty() && record["stream"] == "stdout" && record["time"] == "2026-11-27T02:42:00.12Z"
        );
        joined.push_str(log);
    }
    let mut want = String::new();
    for chunk in input.utf8_chunks() {
        want.push_str(chunk.valid());
        want.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
    }
    assert_eq!(joined, want);
    assert_eq!(payload(&out), input.len() as u64);
}

/// Journal datagrams, foreign and our own.
pub fn journal(data: &[u8]) {
    use pintle_core::journal::{JournalConfig, JournalEncoder, fields};
    let _ = fields(data);
    let config = JournalConfig {
        id: b"0123456789abcdef".to_vec(),
        priority_prefix: data.len() % 2 == 0,
        ..JournalConfig::default()
    };
    let mut out = Vec::new();
    JournalEncoder::new(&config).encode(&mut out, Stream::Stdout, data, false, true);
    let fields = fields(&out).expect("our own datagram");
    assert!(data.ends_with(fields[0].1));
}

/// Cutting chunks into records.
pub fn lines(data: &[u8]) {
    let mut len = 0;
    for segment in segments(data) {
        assert!(!segment.bytes.is_empty() && segment.bytes.len() <= MAX_RECORD);
        assert_eq!(segment.complete, segment.bytes.ends_with(b"\n"));
        len += segment.bytes.len();
    }
    assert_eq!(len, data.len());
}

/// Joining chunks to lines: nothing is lost, and the bound holds. The first byte is the size of the chunks.
pub fn assembler(data: &[u8]) {
    let Some((piece, data)) = data.split_first() else { return };
    let mut joined = Vec::new();
    let mut take = |line: &[u8], complete: bool, _fresh: bool| {
        assert!(line.len() < 2 * MAX_RECORD);
        assert!(!complete || line.ends_with(b"\n"));
        joined.extend_from_slice(line);
    };
    let mut assembler = LineAssembler::new();
    for piece in data.chunks(usize::from(*piece).max(1) * 40) {
        assembler.push(piece, &mut take);
    }
    assembler.finish(&mut take);
    assert_eq!(joined, data);
}

/// Datagrams of the container's notify socket: what passes once passes again unchanged.
pub fn notify(data: &[u8]) {
    if let Some(passed) = pintle_core::notify::filter(data) {
        assert!(passed.len() <= data.len() + 1);
        assert_eq!(pintle_core::notify::filter(&passed), Some(passed));
    }
}

/// Files of `/proc` and of the cgroup file systems.
pub fn cgroup(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = parse_proc_cgroup(&text);
    let mounts = parse_mountinfo(&text);
    for mount in &mounts {
        for line in &lines {
            let _ = directory(mount, &line.path);
        }
    }
    let _ = unified_directory(&lines, &mounts);
    let _ =
        (parse_memory_events(&text), parse_populated(&text), limit_value(&text), flat_value(&text, "oom"));
}

/// What a failed runtime leaves: log and stderr, separated by the first NUL.
pub fn runtime_log(data: &[u8]) {
    let at = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (log, stderr) = data.split_at(at);
    let _ = pintle_core::runtime::error_message(log, stderr);
}

/// Exit records from disk: what is read is written the same way again.
pub fn record(data: &[u8]) {
    use pintle_core::record::ExitRecord;
    if let Some(record) = ExitRecord::from_json(data) {
        let json = record.to_json();
        let again = ExitRecord::from_json(&json).expect("our own record");
        assert_eq!(again.to_json(), json);
    }
}

/// Size limits: two bytes of limits, then records.
pub fn rotate(data: &[u8]) {
    let [file, total, old, records @ ..] = data else { return };
    let limits = SizeLimits { file: u64::from(*file), total: u64::from(*total) * 4 };
    let mut counter = SizeCounter { file: u64::from(*old), total: u64::from(*old) };
    let (mut at, mut size, mut written, mut dropped, mut steps) = (0, counter.file, 0, 0, 0);
    while let Some(step) = limits.next_step(&counter, records, at) {
        match &step {
            Step::Write(range) => {
                let alone = size == 0;
                size += range.len() as u64;
                written += range.len();
                let count = records[range.clone()].split_inclusive(|b| *b == b'\n').count();
                assert!(limits.file == 0 || size <= limits.file || (alone && count == 1));
            }
            Step::Rotate => size = 0,
            Step::Drop(range) => dropped += range.len(),
        }
        at = counter.apply(&step, at);
        steps += 1;
        assert!(steps <= 2 * records.len() + 2, "no progress");
    }
    assert_eq!(written + dropped, records.len());
}

/// A client and its queue: the container never waits longer than a deadline for a portion of progress.
pub fn queue(data: &[u8]) {
    let policy = QueuePolicy { budget: 100, deadline: Duration::from_millis(50), progress: 10 };
    let mut queue = ClientQueue::new(policy);
    let (mut now, mut waited) = (0u64, 0u64);
    for step in data.chunks_exact(2) {
        match queue.verdict(Duration::from_millis(now)) {
            Verdict::Accept => queue.push(u64::from(step[0])),
            Verdict::Pause { until } => {
                let left = until.as_millis() as u64 - now;
                let step_time = u64::from(step[0]).min(left);
                now += step_time;
                waited += step_time;
                queue.pop(u64::from(step[1]).min(queue.queued()));
            }
            Verdict::Drop => break,
        }
        now += 1;
        assert!(queue.queued() < policy.budget + 256);
    }
    assert!(waited <= 50 * (2 + 2 * queue.sent() / policy.progress));
}

/// Timestamps: always the same length, and the cache changes nothing.
pub fn stamp(data: &[u8]) {
    let mut cached = Stamper::new();
    for bytes in data.chunks_exact(16) {
        let int = |range: std::ops::Range<usize>| {
            bytes[range].iter().rev().fold(0u64, |sum, b| sum << 8 | u64::from(*b))
        };
        let now = WallTime::new(int(0..8) as i64, int(8..12) as u32);
        let offset = int(12..16) as i32;
        let fresh = *Stamper::new().stamp(now, offset);
        assert_eq!(fresh.len(), STAMP_LEN);
        assert!(fresh.is_ascii());
        assert_eq!(*cached.stamp(now, offset), fresh);
    }
}

/// Pauses of the pump are short.
pub fn batch(data: &[u8]) {
    let mut batcher = Batcher::new();
    let mut now = Duration::ZERO;
    for step in data.chunks_exact(2) {
        now += Duration::from_micros(u64::from(step[0]) * 20);
        if let Some(pause) = batcher.after_read(now, usize::from(step[1]) * 300) {
            assert!(!pause.is_zero() && pause <= Duration::from_millis(1));
        }
    }
}

/// Wait statuses: whatever the kernel says has one meaning.
pub fn exit(data: &[u8]) {
    use pintle_core::exit::WaitStatus;
    for bytes in data.chunks_exact(4) {
        let raw = bytes.iter().rev().fold(0u32, |sum, b| sum << 8 | u32::from(*b)) as i32;
        for status in
            [WaitStatus::from_raw(raw), WaitStatus::from_siginfo(raw & 7, raw >> 8)].into_iter().flatten()
        {
            assert_eq!(status.success(), status == WaitStatus::from_raw(0).expect("exit of 0"));
        }
    }
}

/// Counts of `memory.events` in any order: the sum of what is reported never falls.
pub fn oom(data: &[u8]) {
    let mut counter = OomCounter::new(MemoryEvents::default(), MemoryEvents::default());
    for bytes in data.chunks_exact(3) {
        let own = MemoryEvents { oom: bytes[0].into(), oom_kill: bytes[1].into(), ..MemoryEvents::default() };
        let parent = MemoryEvents { oom: bytes[2].into(), ..MemoryEvents::default() };
        std::hint::black_box(counter.observe(own, (bytes[2] % 2 == 0).then_some(parent)));
        std::hint::black_box(counter.verdict(bytes[0] % 2 == 0));
    }
}

/// The life of a container as a list of events, from any number of observers, with hand-overs in between: what is told of it
/// reads like one life, whatever the order in which it was seen.
pub fn life(data: &[u8]) {
    use pintle_core::life::{Call, Life, Status, Step};
    const STEPS: [Step; 8] = [
        Step::Created,
        Step::Restored,
        Step::Started,
        Step::Paused,
        Step::Resumed,
        Step::Died,
        Step::Ended,
        Step::Deleted,
    ];
    const CALLS: [Call; 7] =
        [Call::Create, Call::Start, Call::Exec, Call::Pause, Call::Resume, Call::Update, Call::Checkpoint];
    let mut life = Life::default();
    let mut told: Vec<Step> = Vec::new();
    let mut died = false;
    for byte in data {
        let was = life.status();
        match usize::from(byte & 0xf) {
            n @ 0..8 => {
                let step = STEPS[n];
                let news = life.take(step);
                if news {
                    told.push(step);
                } else {
                    assert!(
                        life.status() == was || step == Step::Died,
                        "{step:?} was no news and changed {was:?}"
                    );
                }
                died |= step == Step::Died && !matches!(was, Status::Creating | Status::Deleted);
                // Once more is no news.
                assert!(!life.take(step));
            }
            // A successor knows what its predecessor has written down: status, start and end.
            8 => {
                let has = |step| told.contains(&step);
                life = Life::resume(was, has(Step::Started) || has(Step::Restored), has(Step::Ended));
                assert_eq!(life.status(), was);
            }
            n => {
                let call = CALLS[n - 9];
                // Nothing may be asked of a container whose process is gone, or that is not there yet.
                let alive = matches!(was, Status::Created | Status::Running | Status::Paused);
                assert_eq!(was.allows(call) && call != Call::Create, alive && was.allows(call));
                assert_eq!(was.allows(Call::Create), told.is_empty());
            }
        }
        assert!(rank(life.status()) >= rank(was), "{:?} after {was:?}", life.status());
    }
    // The grammar: created (or restored), started, paused and resumed in turn, ended, deleted; each at most once but for
    // the pauses; nothing between the end and the deletion.
    let mut rest = told.iter().copied().peekable();
    let begun = rest.next_if(|s| matches!(s, Step::Created | Step::Restored));
    let runs = begun == Some(Step::Restored) || begun.is_some() && rest.next_if_eq(&Step::Started).is_some();
    let mut paused = false;
    while let Some(step) = rest.next_if(|s| matches!(s, Step::Paused | Step::Resumed)) {
        assert!(runs && (step == Step::Paused) != paused, "{told:?}");
        paused = step == Step::Paused;
    }
    let ended = rest.next_if_eq(&Step::Ended).is_some();
    let deleted = rest.next_if_eq(&Step::Deleted).is_some();
    assert_eq!(rest.next(), None, "{told:?}");
    let expected = match (deleted, ended || died, runs, begun) {
        (true, ..) => Status::Deleted,
        (_, true, ..) => Status::Stopped,
        (.., true, _) => {
            if paused {
                Status::Paused
            } else {
                Status::Running
            }
        }
        (.., Some(_)) => Status::Created,
        (.., None) => Status::Creating,
    };
    assert_eq!(life.status(), expected, "{told:?}");
}

/// However typed input is cut, the same is passed on, and the keys end it at the same place. The first byte says
/// how many keys there are; the whole is read as a list of keys, too.
pub fn detach(data: &[u8]) {
    use pintle_core::detach::Detach;
    if let Err(word) = Detach::parse(&String::from_utf8_lossy(data)) {
        assert!(!word.is_empty() && !word.contains(','));
    }
    let Some((first, data)) = data.split_first() else { return };
    let (keys, input) = data.split_at(data.len().min(usize::from(first & 3)));
    let feed = |piece: usize| {
        let (mut finder, mut out) = (Detach::new(keys.to_vec()), Vec::new());
        let ended = input.chunks(piece).any(|part| finder.feed(part, &mut out));
        (out, ended)
    };
    let whole = feed(input.len().max(1));
    assert_eq!(feed(1), whole);
    assert_eq!(feed(3), whole);
    let (out, ended) = whole;
    assert!(out.len() <= input.len() && input.starts_with(&out), "typed input is changed or reordered");
    let at = (!keys.is_empty()).then(|| input.windows(keys.len()).position(|w| w == keys)).flatten();
    assert_eq!(ended, at.is_some());
    if let Some(at) = at {
        assert_eq!(out.len(), at);
    }
}

/// Statuses in the order of a life; frozen and running are as far.
fn rank(status: pintle_core::life::Status) -> u8 {
    use pintle_core::life::Status::{Created, Creating, Deleted, Paused, Running, Stopped};
    match status {
        Creating => 0,
        Created => 1,
        Running | Paused => 2,
        Stopped => 3,
        Deleted => 4,
    }
}

/// What containerd names as the place of output: nothing grows, and a path that is no URI stays as it is.
pub fn stdio_uri(data: &[u8]) {
    use pintle_core::stdio_uri::{Target, parse};
    let text = String::from_utf8_lossy(data);
    match parse(&text) {
        Ok(Target::Null) => assert!(text.is_empty()),
        Ok(Target::Path(path) | Target::File(path)) => {
            assert!(path.len() <= text.len() && !path.is_empty());
            assert!(text.contains("://") || path == text);
        }
        Ok(Target::Binary { path, args, .. }) => {
            assert!(!path.is_empty() && args.len() % 2 == 0);
            assert!(path.len() + args.iter().map(String::len).sum::<usize>() <= text.len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Messages to a conmon caller: one line of bounded length, whatever a runtime said.
pub fn sync(data: &[u8]) {
    use pintle_core::sync::{Key, MESSAGE_MAX, encode};
    let line = encode(Key::Data, -1, data);
    assert!(line.len() <= 6 * MESSAGE_MAX + 64 && line.ends_with(b"}\n"));
    assert!(line.iter().take(line.len() - 1).all(|b| *b >= b' '));
    assert!(std::str::from_utf8(&line).is_ok());
}

/// A limited rate: what is taken only when nothing has to be waited for never exceeds the rate by more than one piece.
pub fn rate(data: &[u8]) {
    use pintle_core::rate::{Bucket, RateLimits};
    const SECOND: u64 = 1_000_000_000;
    let [rate, steps @ ..] = data else { return };
    let rate = u64::from(*rate) + 1;
    let mut bucket = Bucket::new(RateLimits { bytes: rate, lines: 0 }, 0);
    let (mut now, mut taken, mut largest) = (0u64, 0u64, 0u64);
    for step in steps.chunks_exact(2) {
        now += u64::from(step[0]) * 10_000_000;
        let wait = bucket.wait(now);
        assert!(wait <= 512 * SECOND);
        now += wait;
        assert_eq!(bucket.wait(now), 0, "what was said to be enough is not");
        let bytes = u64::from(step[1]);
        bucket.take(now, bytes, 1);
        taken += bytes;
        largest = largest.max(bytes);
        assert!(taken <= rate + now.div_ceil(SECOND) * rate + largest);
    }
}
