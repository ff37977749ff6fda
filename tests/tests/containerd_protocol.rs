//! The containerd door call by call: what containerd 2.x and CRI-O do that the packaged 1.6 does not, the order of
//! events under load, and the errors.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pintle_proto::containerd::runtime_info::RuntimeInfo;
use pintle_proto::containerd::{metrics_v1, metrics_v2, pack, runc_options, task, unpack};
use pintle_tests::{
    Act, Bundle, Caller, FakeRuntime, Refused, Sink, Start, TaskShim, TempDir, containerd_shim, crun,
    eventually, is_cgroup2, newer_criu, output_within, pintle, process_alive, pss_kib, rootfs, scaled,
    start_and_fail, tally, wait_for, wait_for_async,
};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use ttrpc::Code;

/// Several threads: readers of FIFOs and waiting for processes must not stop the event service.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work)
}

/// Runs what waits in a blocking way beside the event service.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn sleeper() -> Bundle {
    Bundle::new(&["/bin/sleep", "1000"])
}

/// A daemon's event socket and the settings that name it.
async fn daemon(caller: Caller) -> (TempDir, Sink, ttrpc::r#async::Server, Start) {
    let dir = TempDir::new("ev");
    let sink = Sink::default();
    let socket = dir.join("t.sock");
    let server = sink.serve(&socket).await;
    let mut settings = Start::new(caller);
    settings.ttrpc = socket.to_str().unwrap().to_owned();
    settings.address = dir.join("c.sock").to_str().unwrap().to_owned();
    (dir, sink, server, settings)
}

/// Sees a container to its end and the shim with it.
async fn finish(shim: &TaskShim, task: &pintle_tests::Task) {
    let _ = task.kill("", 9).await;
    task.wait("").await.unwrap();
    task.delete("").await.unwrap();
    let pid = shim.pid();
    task.shutdown().await;
    aside(|| shim.gone(pid));
}

#[test]
fn start_answers_as_each_caller_reads() {
    block_on(async {
        let (_dir, _sink, _server, mut settings) = daemon(Caller::Old).await;
        let old = TaskShim::start(&sleeper(), &settings);
        assert!(old.answer.starts_with("unix:///run/containerd/s/") && !old.answer.ends_with('\n'));
        assert_eq!(fs::read_to_string(old.bundle.join("address")).unwrap(), old.answer);
        assert_eq!(fs::metadata(&old.socket).unwrap().permissions().mode() & 0o777, 0o600);
        // A second start finds the first.
        let again = old.command("start", &settings);
        assert_eq!(
            (again.status.code(), String::from_utf8(again.stdout).unwrap()),
            (Some(0), old.answer.clone())
        );
        let old_pid = old.pid();
        old.connect().await.shutdown().await;
        aside(|| old.gone(old_pid));

        settings.caller = Caller::New;
        let new = TaskShim::start(&sleeper(), &settings);
        assert!(new.socket.starts_with(new.dir.join("s")), "{}", new.answer);
        let pid = new.pid();
        // Nothing of the start's pipes, and standard streams that lead nowhere.
        for (fd, to) in pintle_tests::fds(pid) {
            assert!(!(fd < 3 && to.starts_with("pipe:")), "descriptor {fd} is {to}");
        }
        new.connect().await.shutdown().await;
        aside(|| new.gone(pid));

        let failed = Command::new(containerd_shim()).args(["-id", "x", "start"]).output().unwrap();
        assert!(!failed.status.success() && failed.stdout.is_empty());
        assert!(String::from_utf8_lossy(&failed.stderr).contains("namespace"));
    });
}

#[test]
fn the_whole_life_by_the_third_version() {
    block_on(async {
        let (_dir, sink, _server, settings) = daemon(Caller::New).await;
        let shim = TaskShim::start(&Bundle::sh("read x; echo out $x; echo err >&2; exit 5"), &settings);
        let task = shim.connect().await;
        let fifos = shim.fifos("init");
        let (out, err) = (fifos.read_stdout(), fifos.read_stderr());
        let pid = task
            .create(&shim, |r| {
                (r.stdin, r.stdout, r.stderr) =
                    (fifos.stdin.clone(), fifos.stdout.clone(), fifos.stderr.clone());
            })
            .await
            .unwrap();
        assert_eq!(task.state("").await.unwrap().status.enum_value(), Ok(task::Status::CREATED));
        let connect: task::ConnectResponse = task.plain("Connect").await.unwrap();
        assert_eq!((connect.task_pid, connect.shim_pid), (pid, shim.pid()));
        let waiting = {
            let task = task.clone();
            tokio::spawn(async move { task.wait("").await })
        };
        assert_eq!(task.start("").await, Ok(pid));
        let state = task.state("").await.unwrap();
        assert_eq!(
            (state.status.enum_value(), state.exited_at.seconds),
            (Ok(task::Status::RUNNING), -62_135_596_800)
        );
        assert_eq!((state.stdout.as_str(), state.id.as_str()), (fifos.stdout.as_str(), shim.id.as_str()));
        aside(|| fs::write(&fifos.stdin, "word\n").unwrap());
        assert_eq!(waiting.await.unwrap(), Ok(5));
        assert_eq!(aside(|| out.join().unwrap()), b"out word\n");
        assert_eq!(aside(|| err.join().unwrap()), b"err\n");
        let state = task.state("").await.unwrap();
        assert_eq!((state.status.enum_value(), state.exit_status), (Ok(task::Status::STOPPED), 5));
        assert!(state.exited_at.seconds > 0);
        // What containerd asks of a stopped task: signals, processes, metrics, the end once more.
        assert_eq!(task.kill("", 9).await.unwrap_err().0, Code::NOT_FOUND);
        let pids: task::PidsResponse = task.plain("Pids").await.unwrap();
        assert_eq!(pids.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [pid]);
        task.plain::<task::StatsResponse>("Stats").await.unwrap();
        assert_eq!(task.wait("").await, Ok(5));
        assert_eq!(task.delete("").await, Ok(5));
        assert_eq!(task.delete("").await.unwrap_err().0, Code::NOT_FOUND);
        assert_eq!(task.state("").await.unwrap_err().0, Code::NOT_FOUND);
        let server = shim.pid();
        task.shutdown().await;
        aside(|| shim.gone(server));
        aside(|| sink.wait("/tasks/delete"));
        assert_eq!(sink.topics(), ["create", "start", "exit", "delete"]);
        // `delete` runs after a clean end too: quick, quiet, and with nothing to do.
        let out = shim.command("delete", &settings);
        assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        let answer = task::DeleteResponse::parse_from_bytes(&out.stdout).unwrap();
        assert_eq!((answer.pid, answer.exit_status), (pid, 5));
    });
}

/// One start and one exit for each process, in this order, and every exec's exit before init's.
#[test]
fn events_of_100_concurrent_execs() {
    block_on(async {
        let (_dir, sink, _server, settings) = daemon(Caller::New).await;
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        let count = 100;
        let short: Vec<_> = (0..count)
            .map(|n| {
                let task = task.clone();
                tokio::spawn(async move {
                    let exec = format!("e{n}");
                    task.exec(&exec, &format!("exit {n}"), None).await.unwrap();
                    task.start(&exec).await.unwrap();
                    assert_eq!(task.wait(&exec).await, Ok(n), "{exec}");
                    if n % 2 == 0 {
                        assert_eq!(task.delete(&exec).await, Ok(n), "{exec}");
                    }
                })
            })
            .collect();
        for exec in short {
            exec.await.unwrap();
        }
        // And some that init's end takes with it, started or about to.
        let long: Vec<_> = (0..scaled(8, 40))
            .map(|n| {
                let task = task.clone();
                tokio::spawn(async move {
                    let exec = format!("long{n}");
                    task.exec(&exec, "sleep 1000", None).await.map_err(drop)?;
                    task.start(&exec).await.map_err(drop)?;
                    task.wait(&exec).await.map(drop).map_err(drop)
                })
            })
            .collect();
        wait_for_async("a long exec to run", || async {
            let state = task.state("long0").await.map_err(|e| e.1)?;
            if state.pid > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        task.kill("", 9).await.unwrap();
        for exec in long {
            // One that came too late is refused.
            let _ = exec.await.unwrap();
        }
        assert_eq!(task.wait("").await, Ok(137));
        task.delete("").await.unwrap();
        let pid = shim.pid();
        task.shutdown().await;
        aside(|| shim.gone(pid));
        let all = sink.wait("/tasks/delete");
        let (started, exited) = (tally(&all, "/tasks/exec-started"), tally(&all, "/tasks/exit"));
        assert!(
            started.values().chain(exited.values()).all(|n| *n == 1),
            "started {started:?}, exited {exited:?}"
        );
        assert!((0..count).all(|n| started.contains_key(&format!("e{n}"))));
        let place = |topic: &str, exec: &str| all.iter().position(|e| e.topic == topic && e.exec == exec);
        let init = place("/tasks/exit", "").expect("the end of init");
        for exec in started.keys() {
            let start = place("/tasks/exec-started", exec).unwrap();
            let end = place("/tasks/exit", exec).unwrap_or_else(|| panic!("no end of {exec}"));
            assert!(start < end && end < init, "{exec}: start {start}, end {end}, init {init}");
            let pid = |at: usize| all[at].pid;
            assert_eq!(pid(start), pid(end), "{exec}");
        }
        assert_eq!(exited.len(), started.len() + 1);
        assert_eq!(all.last().unwrap().topic, "/tasks/delete");
    });
}

#[test]
fn errors_by_class() {
    block_on(async {
        let (_dir, sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&sleeper(), &settings);
        let mut task = shim.connect().await;
        let code = |r: Result<u32, Refused>| r.unwrap_err().0;
        // Nothing is created.
        assert_eq!(
            task.delete("").await,
            Err(Refused(Code::NOT_FOUND, "container not created: not found".to_owned()))
        );
        let connect: task::ConnectResponse = task.plain("Connect").await.unwrap();
        assert_eq!(connect.task_pid, 0);
        // A create that fails says why, tells nobody, and leaves nothing.
        let missing =
            pack(&runc_options::Options { binary_name: "no-runc".to_owned(), ..Default::default() });
        let refused = task.create(&shim, |r| r.options = Some(missing).into()).await.unwrap_err();
        assert!(
            refused.1.contains("OCI runtime create failed") && refused.1.contains("\"no-runc\""),
            "{refused:?}"
        );
        let odd = Any { type_url: "x.y.Z".to_owned(), value: vec![1], ..Default::default() };
        assert_eq!(code(task.create(&shim, |r| r.options = Some(odd).into()).await), Code::INVALID_ARGUMENT);
        assert_eq!(
            code(task.create(&shim, |r| r.stdout = "odd:///x".to_owned()).await),
            Code::INVALID_ARGUMENT
        );
        assert!(sink.all().is_empty());

        task.create(&shim, |_| {}).await.unwrap();
        assert_eq!(code(task.create(&shim, |_| {}).await), Code::ALREADY_EXISTS);
        assert_eq!(code(task.plain::<Empty>("Pause").await.map(|_| 0)), Code::FAILED_PRECONDITION);
        task.start("").await.unwrap();
        assert_eq!(code(task.start("").await), Code::FAILED_PRECONDITION);
        assert_eq!(code(task.delete("").await), Code::FAILED_PRECONDITION);
        assert_eq!(code(task.kill("", 65).await.map(|()| 0)), Code::INVALID_ARGUMENT);
        assert_eq!(code(task.plain::<Empty>("Resume").await.map(|_| 0)), Code::FAILED_PRECONDITION);
        task.kill("", 0).await.unwrap();
        // Execs.
        let unknown = task.start("nobody").await.unwrap_err();
        assert_eq!(unknown, Refused(Code::NOT_FOUND, "process does not exist nobody: not found".to_owned()));
        task.exec("e", "exit 0", None).await.unwrap();
        assert_eq!(code(task.exec("e", "exit 0", None).await.map(|()| 0)), Code::ALREADY_EXISTS);
        assert_eq!(code(task.exec("../e", "exit 0", None).await.map(|()| 0)), Code::INVALID_ARGUMENT);
        assert_eq!(code(task.kill("e", 9).await.map(|()| 0)), Code::FAILED_PRECONDITION);
        // One that cannot be started stays created; who waits for it waits no longer.
        let bad = task::ExecProcessRequest {
            id: shim.id.clone(),
            exec_id: "bad".to_owned(),
            spec: Some(Any { value: br#"{"args":["/no/such"],"cwd":"/"}"#.to_vec(), ..Default::default() })
                .into(),
            ..Default::default()
        };
        task.call::<_, Empty>("Exec", &bad).await.unwrap();
        let waiting = {
            let task = task.clone();
            tokio::spawn(async move { task.wait("bad").await })
        };
        tokio::task::yield_now().await;
        let refused = task.start("bad").await.unwrap_err();
        assert!(
            refused.1.starts_with("OCI runtime exec failed") && refused.1.contains("no such file"),
            "{refused:?}"
        );
        // A wait that comes only now has a created process before it, so only the early one is looked at.
        if !waiting.is_finished() {
            let state = task.state("bad").await.unwrap();
            assert_eq!(state.status.enum_value(), Ok(task::Status::CREATED));
        }
        waiting.abort();
        assert_eq!(task.delete("bad").await, Ok(0));
        // Methods and services that do not exist.
        assert_eq!(code(task.plain::<Empty>("NoSuchMethod").await.map(|_| 0)), Code::UNIMPLEMENTED);
        task.service = "no.such.Service";
        assert!(matches!(
            code(task.plain::<Empty>("State").await.map(|_| 0)),
            Code::UNIMPLEMENTED | Code::INVALID_ARGUMENT
        ));
        task.service = pintle_proto::containerd::TASK_V2;
        finish(&shim, &task).await;
        let topics = sink.topics();
        assert_eq!(topics.iter().filter(|t| *t == "exit").count(), 1, "{topics:?}");
    });
}

#[test]
fn cri_o_vm() {
    block_on(async {
        let settings = Start::new(Caller::CriO);
        let bundle = Bundle::sh("trap 'exit 7' TERM; while :; do sleep 0.05; done").memory(64 << 20);
        let shim = TaskShim::start(&bundle, &settings);
        assert!(shim.answer.starts_with("unix:///"));
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        // Liveness is asked by signal 0.
        task.kill("", 0).await.unwrap();
        // The terminal of an exec is said beside the process document only.
        let fifos = shim.fifos("tty");
        let out = fifos.read_stdout();
        let tty = task::ExecProcessRequest {
            id: shim.id.clone(),
            exec_id: "ab".repeat(32),
            terminal: true,
            stdout: fifos.stdout.clone(),
            stderr: "/no/such/fifo".to_owned(),
            spec: Some(Any {
                value: br#"{"args":["/bin/sh","-c","tty; stty size"],"cwd":"/","env":["PATH=/bin"]}"#
                    .to_vec(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        task.call::<_, Empty>("Exec", &tty).await.unwrap();
        // A size that comes before the terminal is kept for it.
        let size = task::ResizePtyRequest {
            id: shim.id.clone(),
            exec_id: tty.exec_id.clone(),
            width: 99,
            height: 44,
            ..Default::default()
        };
        task.call::<_, Empty>("ResizePty", &size).await.unwrap();
        task.start(&tty.exec_id).await.unwrap();
        assert_eq!(task.wait(&tty.exec_id).await, Ok(0));
        let text = String::from_utf8(aside(|| out.join().unwrap())).unwrap();
        assert_eq!(text, "/dev/pts/0\r\n44 99\r\n");
        let stats: task::StatsResponse = task.plain("Stats").await.unwrap();
        let limit = if is_cgroup2() {
            unpack::<metrics_v2::Metrics>(&stats.stats).unwrap().unwrap().memory.usage_limit
        } else {
            unpack::<metrics_v1::Metrics>(&stats.stats).unwrap().unwrap().memory.usage.limit
        };
        assert_eq!(limit, 64 << 20);
        // Its handler is set before the exec above has ended.
        task.kill("", 15).await.unwrap();
        assert_eq!(task.wait("").await, Ok(7));
        // A stop that finds it dead is a stop that worked; a probe is not answered with success.
        task.kill("", 15).await.unwrap();
        task.kill("", 9).await.unwrap();
        assert_eq!(task.kill("", 0).await.unwrap_err().0, Code::NOT_FOUND);
        assert_eq!(task.delete("").await, Ok(7));
        let pid = shim.pid();
        task.shutdown().await;
        aside(|| shim.gone(pid));
        assert!(!shim.bundle.join("oom").exists());
    });
}

#[test]
fn out_of_memory_is_told_before_the_end() {
    block_on(async {
        for caller in [Caller::Old, Caller::CriO] {
            let (_dir, sink, _server, mut settings) = daemon(caller).await;
            if caller == Caller::CriO {
                (settings.ttrpc, settings.address) = (String::new(), String::new());
            }
            let hog = Bundle::sh("dd if=/dev/zero of=/dev/null bs=256M count=1").memory(24 << 20);
            let shim = TaskShim::start(&hog, &settings);
            let task = shim.connect().await;
            task.create(&shim, |_| {}).await.unwrap();
            task.start("").await.unwrap();
            let status = task.wait("").await.unwrap();
            assert!(status != 0, "it had memory enough");
            // CRI-O looks for this once Wait has answered.
            assert!(shim.bundle.join("oom").exists());
            if caller == Caller::Old {
                let all = aside(|| sink.wait("/tasks/exit"));
                let topics: Vec<&str> = all.iter().map(|e| e.topic.as_str()).collect();
                let oom = topics.iter().position(|t| *t == "/tasks/oom").expect("an OOM event");
                assert!(oom < topics.iter().position(|t| *t == "/tasks/exit").unwrap(), "{topics:?}");
            }
            finish(&shim, &task).await;
        }
    });
}

/// A daemon that is slow to answer has the event already.
#[test]
fn an_event_that_is_answered_late_comes_once() {
    block_on(async {
        let (_dir, sink, _server, settings) = daemon(Caller::Old).await;
        // Longer than a connection or a command of the daemon may take.
        sink.answer_late(Duration::from_secs(6));
        let shim = TaskShim::start(&Bundle::sh("exit 3"), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        assert_eq!(task.wait("").await, Ok(3));
        aside(|| sink.wait("/tasks/exit"));
        finish(&shim, &task).await;
        assert_eq!(sink.topics(), ["create", "start", "exit", "delete"]);
    });
}

/// A connection that ends between an event's arrival and its answer: nobody can know whether it was taken, and so the very
/// same envelope comes once more, before any later event.
#[test]
fn an_event_whose_answer_is_lost_comes_again_as_it_was() {
    block_on(async {
        let (dir, sink, mut server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&Bundle::sh("read x; exit 3"), &settings);
        let task = shim.connect().await;
        let stdin = shim.fifos("init").stdin;
        task.create(&shim, |r| r.stdin = stdin.clone()).await.unwrap();
        task.start("").await.unwrap();
        aside(|| sink.wait("/tasks/start"));
        sink.answer_late(Duration::from_secs(600));
        fs::write(&stdin, "go\n").unwrap();
        aside(|| sink.wait("/tasks/exit"));
        server.stop_listen().await;
        server.disconnect().await;
        drop(server);
        let _server = sink.serve(&dir.join("t.sock")).await;
        finish(&shim, &task).await;
        assert_eq!(sink.topics(), ["create", "start", "exit", "exit", "delete"]);
        let envelopes = sink.envelopes();
        assert_eq!(envelopes[2], envelopes[3]);
    });
}

#[test]
fn events_wait_for_the_daemon_in_order() {
    block_on(async {
        let dir = TempDir::new("ev");
        let sink = Sink::default();
        let socket = dir.join("t.sock");
        let mut settings = Start::new(Caller::Old);
        settings.ttrpc = socket.to_str().unwrap().to_owned();
        settings.address = dir.join("c.sock").to_str().unwrap().to_owned();
        // Nobody is there yet.
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        task.exec("e", "exit 3", None).await.unwrap();
        task.start("e").await.unwrap();
        assert_eq!(task.wait("e").await, Ok(3));
        // Then somebody who refuses the first time.
        sink.refuse(1);
        let _server = sink.serve(&socket).await;
        aside(|| sink.wait("/tasks/exit"));
        assert_eq!(sink.topics(), ["create", "start", "exec-added", "exec-started", "exit"]);
        finish(&shim, &task).await;
        assert_eq!(sink.topics()[5..], ["exit", "delete"]);
    });
}

#[test]
fn events_by_the_publish_command() {
    block_on(async {
        let dir = TempDir::new("ev");
        let program = dir.join("publish");
        let list = dir.join("list");
        let text = format!("#!/bin/sh\necho \"$1 $2 $3 $4 $5 $6 $7 $(wc -c)\" >>{}\n", list.display());
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut settings = Start::new(Caller::Old);
        settings.address = dir.join("c.sock").to_str().unwrap().to_owned();
        settings.publish_binary = program.to_str().unwrap().to_owned();
        let shim = TaskShim::start(&Bundle::sh("exit 0"), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        finish(&shim, &task).await;
        let lines = fs::read_to_string(list).unwrap();
        let topics: Vec<&str> = lines.lines().filter_map(|l| l.split(' ').nth(4)).collect();
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"], "{lines}");
        for line in lines.lines() {
            assert!(line.starts_with(&format!("--address {} publish --topic ", settings.address)), "{line}");
            assert!(line.contains(&format!("--namespace {}", shim.namespace)), "{line}");
            assert!(line.rsplit(' ').next().unwrap().parse::<u32>().unwrap() > 10, "{line}");
        }
    });
}

#[test]
fn root_file_systems_are_mounted_and_unmounted() {
    block_on(async {
        let (dir, _sink, _server, settings) = daemon(Caller::New).await;
        // Overlays of everything there is do not nest on every file system: a small one in memory does.
        let layers = dir.join("layers");
        fs::create_dir(&layers).unwrap();
        let small = Some("size=16m");
        nix::mount::mount(Some("tmpfs"), &layers, Some("tmpfs"), nix::mount::MsFlags::empty(), small)
            .unwrap();
        for name in ["lower", "upper", "work"] {
            fs::create_dir(layers.join(name)).unwrap();
        }
        let copied =
            Command::new("cp").arg("-a").arg(rootfs().join(".")).arg(layers.join("lower")).status().unwrap();
        assert!(copied.success());
        fs::write(layers.join("lower/word"), "below\n").unwrap();
        let bundle = Bundle::sh("cat /word; echo above >/word; cat /word; ls /mnt")
            .edit(|c| c["root"] = serde_json::json!({"path": "rootfs"}));
        let shim = TaskShim::start(&bundle, &settings);
        let task = shim.connect().await;
        let fifos = shim.fifos("init");
        let (out, err) = (fifos.read_stdout(), fifos.read_stderr());
        let at = |name: &str| layers.join(name).to_str().unwrap().to_owned();
        let overlay = task::Mount {
            type_: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                format!("lowerdir={}", at("lower")),
                format!("upperdir={}", at("upper")),
                format!("workdir={}", at("work")),
            ],
            ..Default::default()
        };
        let bind = task::Mount {
            type_: "bind".to_owned(),
            source: at("lower"),
            target: "/mnt".to_owned(),
            options: vec!["rbind".to_owned(), "ro".to_owned()],
            ..Default::default()
        };
        // First one that cannot be mounted: what was mounted is taken back.
        let odd = task::Mount { type_: "nosuchfs".to_owned(), source: "x".to_owned(), ..Default::default() };
        let refused = task.create(&shim, |r| r.rootfs = vec![overlay.clone(), odd]).await.unwrap_err();
        assert!(refused.1.contains("nosuchfs"), "{refused:?}");
        let mounted = || {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            table.contains(shim.bundle.join("rootfs").to_str().unwrap())
        };
        assert!(!mounted());
        task.create(&shim, |r| {
            r.rootfs = vec![overlay, bind];
            (r.stdout, r.stderr) = (fifos.stdout.clone(), fifos.stderr.clone());
        })
        .await
        .unwrap();
        assert!(mounted());
        task.start("").await.unwrap();
        assert_eq!(task.wait("").await, Ok(0));
        let text = String::from_utf8(aside(|| out.join().unwrap())).unwrap();
        assert!(text.starts_with("below\nabove\n") && text.contains("word"), "{text}");
        assert_eq!(aside(|| err.join().unwrap()), b"");
        finish(&shim, &task).await;
        assert!(!mounted());
        assert_eq!(fs::read_dir(shim.bundle.join("rootfs")).unwrap().count(), 0);
        nix::mount::umount2(&layers, nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn version_and_information() {
    let version = output_within(Command::new(containerd_shim()).arg("-v"));
    assert!(
        version.status.success()
            && String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION"))
    );
    let info = output_within(Command::new(containerd_shim()).arg("-info"));
    assert!(info.status.success() && info.stderr.is_empty());
    let info = RuntimeInfo::parse_from_bytes(&info.stdout).unwrap();
    assert_eq!(
        (info.name.as_str(), info.version.version.as_str()),
        ("io.containerd.pintle.v2", env!("CARGO_PKG_VERSION"))
    );
    let knows = output_within(Command::new(pintle_tests::runc()).arg("features")).status.success();
    assert_eq!(info.features.is_some(), knows);
    if knows {
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert!(features["ociVersionMax"].is_string());
    }
}

#[test]
fn delete_after_the_shim_was_killed() {
    block_on(async {
        let (_dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        let init = task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        let pid = shim.pid();
        let server = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGKILL).unwrap();
        let out = shim.command("delete", &settings);
        assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        let answer = task::DeleteResponse::parse_from_bytes(&out.stdout).unwrap();
        assert_eq!((answer.pid, answer.exit_status), (init, 137));
        assert!(answer.exited_at.seconds > 0);
        aside(|| {
            wait_for("the container to end", || !process_alive(init));
            shim.gone(pid);
        });
        // Once more, and for a bundle in which nothing ever was.
        for _ in 0..2 {
            let out = shim.command("delete", &settings);
            assert!(out.status.success() && out.stderr.is_empty());
            for file in ["address", "options.json", "init.pid", "shim.json"] {
                let _ = fs::remove_file(shim.bundle.join(file));
            }
        }
    });
}

#[test]
fn the_native_protocol_sees_it() {
    block_on(async {
        let (_dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        let pid = task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        let root = shim.dir.join("pintle");
        let cli = |args: &[&str]| {
            let out = output_within(Command::new(pintle()).arg("--root").arg(&root).args(args));
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(out.status.success(), "pintle {args:?}: {}{text}", String::from_utf8_lossy(&out.stderr));
            text
        };
        aside(|| {
            let list = cli(&["ps"]);
            assert!(list.contains(&shim.id) && list.contains("running"), "{list}");
            let inspect = cli(&["inspect", &shim.id]);
            assert!(inspect.contains("containerd") && inspect.contains(&pid.to_string()), "{inspect}");
            assert!(cli(&["stats", &shim.id]).contains(&shim.id));
        });
        finish(&shim, &task).await;
    });
}

#[test]
fn clients_come_and_go() {
    block_on(async {
        let (_dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&Bundle::sh("cat; echo end"), &settings);
        let task = shim.connect().await;
        let fifos = shim.fifos("init");
        let out = fifos.read_stdout();
        let err = fifos.read_stderr();
        task.create(&shim, |r| {
            (r.stdin, r.stdout, r.stderr) = (fifos.stdin.clone(), fifos.stdout.clone(), fifos.stderr.clone());
        })
        .await
        .unwrap();
        task.start("").await.unwrap();
        // A writer that leaves does not end the container's input, and a client that leaves nothing at all.
        drop(task);
        aside(|| {
            fs::write(&fifos.stdin, "one\n").unwrap();
            fs::write(&fifos.stdin, "two\n").unwrap();
        });
        let task = shim.connect().await;
        assert_eq!(task.state("").await.unwrap().status.enum_value(), Ok(task::Status::RUNNING));
        let close = task::CloseIORequest { id: shim.id.clone(), stdin: true, ..Default::default() };
        task.call::<_, Empty>("CloseIO", &close).await.unwrap();
        task.call::<_, Empty>("CloseIO", &close).await.unwrap();
        assert_eq!(task.wait("").await, Ok(0));
        assert_eq!(aside(|| out.join().unwrap()), b"one\ntwo\nend\n");
        assert_eq!(aside(|| err.join().unwrap()), b"");
        finish(&shim, &task).await;
    });
}

/// Leftover processes hold an exec's output open: its end is told all the same, and Delete closes by force. Of two Deletes
/// that wait for that, one has deleted it.
#[test]
fn output_that_others_hold_open() {
    block_on(async {
        let (_dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        let fifos = shim.fifos("e");
        let (out, err) = (fifos.read_stdout(), fifos.read_stderr());
        task.exec("e", "sleep 1000 & echo started", Some(&fifos)).await.unwrap();
        task.start("e").await.unwrap();
        assert_eq!(task.wait("e").await, Ok(0));
        let (one, other) = tokio::join!(task.delete("e"), task.delete("e"));
        let refused = [&one, &other].map(|r| matches!(r, Err(Refused(Code::NOT_FOUND, _))));
        assert!([&one, &other].contains(&&Ok(0)) && refused.contains(&true), "{one:?} {other:?}");
        assert_eq!(aside(|| out.join().unwrap()), b"started\n");
        assert_eq!(aside(|| err.join().unwrap()), b"");
        finish(&shim, &task).await;
    });
}

/// What the native protocol says of the container's output: bytes read, and bytes lost by cause.
async fn output_of(shim: &TaskShim) -> (u64, Vec<(String, u64)>) {
    let monitor = pintle_client::Monitor::at(shim.dir.join("pintle").join(&shim.id));
    let io = monitor.state().await.expect("state").io;
    (io.stdout_bytes, io.lost_bytes.into_iter().collect())
}

/// A daemon that is being restarted when a container writes its last words and ends still gets them, and then the end.
#[test]
fn last_words_wait_for_a_daemon_that_comes_back() {
    block_on(async {
        let (_dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&Bundle::sh("read x; seq 1 5000; exit 3"), &settings);
        let task = shim.connect().await;
        let fifos = shim.fifos("init");
        let before =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifos.stdout).unwrap();
        let create =
            task.create(&shim, |r| (r.stdin, r.stdout) = (fifos.stdin.clone(), fifos.stdout.clone()));
        create.await.unwrap();
        task.start("").await.unwrap();
        // The daemon goes.
        drop(before);
        fs::write(&fifos.stdin, "go\n").unwrap();
        assert_eq!(task.wait("").await, Ok(3));
        let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
        wait_for_async("all to be read", || async {
            let (read, lost) = output_of(&shim).await;
            if read == expected.len() as u64 && lost.is_empty() {
                Ok(())
            } else {
                Err(format!("{read} {lost:?}"))
            }
        })
        .await;
        // It comes back.
        let reader = fifos.read_stdout();
        aside(|| wait_for("the last words and the end", || reader.is_finished()));
        assert!(reader.join().unwrap() == expected.as_bytes());
        finish(&shim, &task).await;
    });
}

/// Output that nobody takes is counted by its cause, to the byte, and told: where nobody reads the FIFO until the container is
/// deleted, where the file's disk is full, and where the logger program ends early.
#[test]
fn lost_output_is_counted_and_told() {
    block_on(async {
        // Nobody reads until the deletion.
        let (dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let mut shim = TaskShim::start(&Bundle::sh("read x; seq 1 5000; exit 3"), &settings);
        let task = shim.connect().await;
        let fifos = shim.fifos("init");
        let reader =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifos.stdout).unwrap();
        let create =
            task.create(&shim, |r| (r.stdin, r.stdout) = (fifos.stdin.clone(), fifos.stdout.clone()));
        create.await.unwrap();
        task.start("").await.unwrap();
        drop(reader);
        fs::write(&fifos.stdin, "go\n").unwrap();
        assert_eq!(task.wait("").await, Ok(3));
        task.delete("").await.unwrap();
        let written = (1..=5000u32).map(|n| n.to_string().len() + 1).sum::<usize>();
        let told = format!("lost {written} bytes of output of {}: deadline", shim.id);
        let mut log = String::new();
        wait_for("the loss to be told", || {
            log.push_str(&shim.log());
            log.contains(&told)
        });
        task.shutdown().await;

        // A full disk: of a terminal, since other output goes to the file without passing the shim.
        let shim = TaskShim::start(
            &Bundle::sh("printf 123456789; read x; printf 0; sleep 1000").terminal(),
            &settings,
        );
        let task = shim.connect().await;
        let create = task.create(&shim, |r| {
            (r.terminal, r.stdin, r.stdout) = (true, fifos.stdin.clone(), "file:///dev/full".to_owned());
        });
        create.await.unwrap();
        task.start("").await.unwrap();
        let lost = async |what: &str, cause: &str, bytes: u64| {
            let expected = vec![(cause.to_owned(), bytes)];
            wait_for_async(what, || async {
                let (_, lost) = output_of(&shim).await;
                if lost == expected { Ok(()) } else { Err(format!("{lost:?}")) }
            })
            .await;
        };
        lost("the first loss", "ENOSPC", 9).await;
        // The echo of the terminal is two bytes and the newline becomes two, then comes the zero.
        fs::write(&fifos.stdin, "x\n").unwrap();
        lost("the next loss", "ENOSPC", 9 + 3 + 1).await;
        finish(&shim, &task).await;

        // A logger that takes five bytes and ends.
        let program = dir.join("logger");
        let ended = dir.join("ended");
        let text = format!("#!/bin/sh\nexec 5>&-\nhead -c 5 <&3 >/dev/null\n: >{}\n", ended.display());
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let script = "printf 12345; while [ ! -e /ctl/go ]; do sleep 0.05; done; seq 1 100000; sleep 1000";
        let control = dir.join("ctl");
        fs::create_dir(&control).unwrap();
        let shim = TaskShim::start(&Bundle::sh(script).bind(&control, "/ctl"), &settings);
        let task = shim.connect().await;
        let uri = format!("binary://{}", program.display());
        task.create(&shim, |r| r.stdout = uri).await.unwrap();
        task.start("").await.unwrap();
        wait_for("the logger to have read", || ended.exists());
        fs::write(control.join("go"), "").unwrap();
        let written = (1..=100_000u32).map(|n| n.to_string().len() as u64 + 1).sum::<u64>();
        let expected = vec![("EPIPE".to_owned(), written)];
        wait_for_async("the loss of what the logger did not take", || async {
            let (_, lost) = output_of(&shim).await;
            if lost == expected { Ok(()) } else { Err(format!("{lost:?}")) }
        })
        .await;
        finish(&shim, &task).await;
    });
}

/// A client that is still reading what its exec wrote loses nothing by a deletion of the container.
#[test]
fn a_deletion_waits_for_who_reads_an_exec() {
    use std::io::Read as _;
    block_on(async {
        let (_dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        let fifos = shim.fifos("e");
        let (go, told) = std::sync::mpsc::channel::<()>();
        let path = fifos.stdout.clone();
        let reader = std::thread::spawn(move || {
            let mut fifo = fs::File::open(path).unwrap();
            told.recv().unwrap();
            let (mut all, mut piece) = (Vec::new(), [0; 4096]);
            loop {
                match fifo.read(&mut piece).unwrap() {
                    0 => return all,
                    n => all.extend_from_slice(&piece[..n]),
                }
                // A slow one: it is far behind when the deletion comes.
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let errors = fifos.read_stderr();
        // More than a FIFO holds, less than two pipes do: the exec ends though nobody has read anything yet.
        task.exec("e", "seq 1 20000", Some(&fifos)).await.unwrap();
        task.start("e").await.unwrap();
        assert_eq!(task.wait("e").await, Ok(0));
        task.kill("", 9).await.unwrap();
        assert_eq!(task.wait("").await, Ok(137));
        go.send(()).unwrap();
        task.delete("").await.unwrap();
        let expected: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
        let got = aside(|| reader.join().unwrap());
        assert!(got == expected.as_bytes(), "{} of {} bytes", got.len(), expected.len());
        assert_eq!(aside(|| errors.join().unwrap()), b"");
        let pid = shim.pid();
        task.shutdown().await;
        aside(|| shim.gone(pid));
    });
}

#[test]
fn another_runtime_by_options() {
    block_on(async {
        let (dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&Bundle::sh("exit 6"), &settings);
        let task = shim.connect().await;
        let options = pack(&runc_options::Options {
            binary_name: crun().to_str().unwrap().to_owned(),
            root: dir.join("root").to_str().unwrap().to_owned(),
            ..Default::default()
        });
        task.create(&shim, |r| r.options = Some(options).into()).await.unwrap();
        assert!(dir.join("root").join(&shim.namespace).join(&shim.id).exists());
        task.start("").await.unwrap();
        assert_eq!(task.wait("").await, Ok(6));
        finish(&shim, &task).await;
    });
}

/// Options that name the runtime.
fn by(runtime: &std::path::Path) -> protobuf::well_known_types::any::Any {
    let binary_name = runtime.to_str().unwrap().to_owned();
    pack(&runc_options::Options { binary_name, ..Default::default() })
}

/// A container that was never started is deleted with its process, and its end comes before the deletion.
#[test]
fn created_and_deleted() {
    block_on(async {
        for runtime in [pintle_tests::runc(), crun()] {
            let (_dir, sink, _server, settings) = daemon(Caller::Old).await;
            let shim = TaskShim::start(&sleeper(), &settings);
            let task = shim.connect().await;
            let options = by(&runtime);
            let pid = task.create(&shim, |r| r.options = Some(options).into()).await.unwrap();
            assert_eq!(task.delete("").await, Ok(137));
            assert!(!process_alive(pid));
            let server = shim.pid();
            task.shutdown().await;
            aside(|| shim.gone(server));
            assert_eq!(sink.topics(), ["create", "exit", "delete"]);
        }
    });
}

/// Without a pid namespace of its own nothing ends with init by itself: the shim sees to it, and tells init's end last.
#[test]
fn execs_of_a_container_in_the_hosts_pid_namespace() {
    block_on(async {
        for runtime in [pintle_tests::runc(), crun()] {
            let (_dir, sink, _server, settings) = daemon(Caller::Old).await;
            let bundle = sleeper().edit(|c| {
                let namespaces = c["linux"]["namespaces"].as_array_mut().expect("namespaces");
                namespaces.retain(|n| n["type"] != "pid");
            });
            let shim = TaskShim::start(&bundle, &settings);
            let task = shim.connect().await;
            let options = by(&runtime);
            task.create(&shim, |r| r.options = Some(options).into()).await.unwrap();
            task.start("").await.unwrap();
            task.exec("e", "sleep 1000 & sleep 1000", None).await.unwrap();
            task.start("e").await.unwrap();
            task.kill("", 9).await.unwrap();
            assert_eq!(task.wait("").await, Ok(137));
            assert_eq!(task.wait("e").await, Ok(137));
            finish(&shim, &task).await;
            let exits: Vec<_> =
                sink.all().into_iter().filter(|e| e.topic == "/tasks/exit").map(|e| e.exec).collect();
            assert_eq!(exits, ["e", ""], "{}", runtime.display());
        }
    });
}

/// Where a CRIU runs that knows this kernel.
#[test]
fn checkpoint_and_restore() {
    let Some(criu) = newer_criu().filter(|c| works(c)) else { return };
    block_on(async {
        let (dir, sink, _server, settings) = daemon(Caller::Old).await;
        let runc = dir.join("runc");
        let path =
            format!("{}:{}", criu.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
        let text = format!("#!/bin/sh\nPATH={path} exec {} \"$@\"\n", pintle_tests::runc().display());
        fs::write(&runc, text).unwrap();
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).unwrap();
        let options = pack(&runc_options::Options {
            binary_name: runc.to_str().unwrap().to_owned(),
            ..Default::default()
        });
        let script = "n=0; while :; do n=$((n+1)); echo $n >/tmp/n; sleep 0.05; done";
        let first = TaskShim::start(&Bundle::sh(script), &settings);
        let task = first.connect().await;
        task.create(&first, |r| r.options = Some(options.clone()).into()).await.unwrap();
        task.start("").await.unwrap();
        wait_for_async("it to count", || async {
            let root = format!("/proc/{}/root/tmp/n", task.state("").await.map_err(|e| e.1)?.pid);
            fs::read_to_string(root).map(drop).map_err(|e| e.to_string())
        })
        .await;
        let image = dir.join("image");
        fs::create_dir(&image).unwrap();
        let exit = pack(&runc_options::CheckpointOptions { exit: true, ..Default::default() });
        let request = task::CheckpointTaskRequest {
            id: first.id.clone(),
            path: image.to_str().unwrap().to_owned(),
            options: Some(exit).into(),
            ..Default::default()
        };
        task.call::<_, Empty>("Checkpoint", &request).await.unwrap();
        task.wait("").await.unwrap();
        finish(&first, &task).await;
        assert!(sink.topics().contains(&"checkpointed".to_owned()));

        let second = TaskShim::start(&Bundle::sh(script), &settings);
        let task = second.connect().await;
        let pid = task
            .create(&second, |r| {
                r.options = Some(options).into();
                r.checkpoint = image.to_str().unwrap().to_owned();
            })
            .await
            .unwrap();
        assert_eq!(pid, 0);
        let pid = task.start("").await.unwrap();
        assert!(pid > 0 && process_alive(pid));
        assert_eq!(task.state("").await.unwrap().status.enum_value(), Ok(task::Status::RUNNING));
        finish(&second, &task).await;
    });
}

fn works(criu: &Path) -> bool {
    let check = Command::new(criu).arg("check").stdin(Stdio::null()).output();
    check.is_ok_and(|o| o.status.success())
}

/// Where CRIU cannot run, the answer is its failure, and the container goes on.
#[test]
fn a_checkpoint_that_fails() {
    block_on(async {
        let (dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let runc = dir.join("runc");
        let text = format!(
            "#!/bin/sh\nfor a; do [ \"$a\" = checkpoint ] && {{ echo 'criu failed: type NOTIFY errno 0' >&2; exit 1; }}; done\n\
             exec {} \"$@\"\n",
            pintle_tests::runc().display()
        );
        fs::write(&runc, text).unwrap();
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).unwrap();
        let options = pack(&runc_options::Options {
            binary_name: runc.to_str().unwrap().to_owned(),
            ..Default::default()
        });
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        task.create(&shim, |r| r.options = Some(options).into()).await.unwrap();
        task.start("").await.unwrap();
        let request = task::CheckpointTaskRequest {
            id: shim.id.clone(),
            path: dir.join("image").to_str().unwrap().to_owned(),
            ..Default::default()
        };
        let refused = task.call::<_, Empty>("Checkpoint", &request).await.unwrap_err();
        assert_eq!(
            refused,
            Refused(
                Code::UNKNOWN,
                "OCI runtime checkpoint failed: criu failed: type NOTIFY errno 0".to_owned()
            )
        );
        assert_eq!(task.state("").await.unwrap().status.enum_value(), Ok(task::Status::RUNNING));
        finish(&shim, &task).await;
    });
}

/// What the daemon sends to the log FIFO's other end never stops the shim.
#[test]
fn nobody_reads_the_log() {
    block_on(async {
        let (_dir, _sink, _server, settings) = daemon(Caller::New).await;
        let mut shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        // Signals to the server are answered with a line each while a container lives: more than a FIFO holds.
        let server = nix::unistd::Pid::from_raw(i32::try_from(shim.pid()).unwrap());
        let mut seen: HashMap<bool, u32> = HashMap::new();
        for _ in 0..600 {
            nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGTERM).unwrap();
            let state = task.state("").await.unwrap();
            *seen.entry(state.status.enum_value() == Ok(task::Status::RUNNING)).or_default() += 1;
        }
        assert_eq!(seen.get(&false), None);
        let text = eventually("lines in the log", || {
            let text = shim.log();
            if text.is_empty() { Err("none") } else { Ok(text) }
        });
        assert!(text.lines().all(|l| l.starts_with("time=") && l.contains(" level=")), "{text}");
        finish(&shim, &task).await;
    });
}

/// One server can hold several containers (containerd 2.0.0 to 2.0.5 ask for it), and what that would save: the
/// numbers of ADR 0030.
#[test]
fn several_containers_in_one_server() {
    block_on(async {
        let (_dir, sink, _server, settings) = daemon(Caller::New).await;
        let count = scaled(3, 20);
        let alone: Vec<_> = (0..count).map(|_| TaskShim::start(&sleeper(), &settings)).collect();
        let mut tasks = Vec::new();
        for shim in &alone {
            let task = shim.connect().await;
            task.create(shim, |_| {}).await.unwrap();
            task.start("").await.unwrap();
            tasks.push(task);
        }
        let apart: u64 = alone.iter().map(|s| pss_kib(s.pid())).sum();
        for (shim, task) in alone.iter().zip(&tasks) {
            finish(shim, task).await;
        }

        let shim = TaskShim::start(&sleeper(), &settings);
        let (mut tasks, mut first, mut open) = (Vec::new(), 0, 0);
        for n in 0..count {
            let task = shim.connect_for(&format!("{}m{n}", shim.id)).await;
            let bundle = sleeper().write(&shim.dir.join(format!("b{n}")));
            task.create(&shim, |r| r.bundle = bundle.to_str().unwrap().to_owned()).await.unwrap();
            task.start("").await.unwrap();
            tasks.push(task);
            if n == 0 {
                first = pss_kib(shim.pid());
                open = pintle_tests::fds(shim.pid()).len();
            }
        }
        let grouped = pss_kib(shim.pid());
        let each = grouped.saturating_sub(first) / (count as u64 - 1);
        println!(
            "bench containerd: {count} containers in as many shims: PSS {apart} KiB; in one: {grouped} KiB, {each} for each \
             further one"
        );
        assert!(grouped < apart);
        // Of the release programs, with enough of them for what the shim takes at first not to count.
        let bound = if std::env::var_os("PINTLE_TEST_DIST").is_some() && count >= 20 { 40 } else { 400 };
        assert!(each <= bound, "{each} KiB for each further container");
        // Each goes by itself; the server stays for the others.
        for (n, task) in tasks.iter().enumerate() {
            if n + 1 == count {
                // Of the others nothing is held any more but our connections.
                wait_for_async("descriptors to be given back", || async {
                    let now = pintle_tests::fds(shim.pid());
                    if now.len() <= open + count + 1 {
                        Ok(())
                    } else {
                        Err(format!("{now:?}, {open} at first"))
                    }
                })
                .await;
            }
            assert_eq!(task.state("").await.unwrap().status.enum_value(), Ok(task::Status::RUNNING), "{n}");
            task.kill("", 9).await.unwrap();
            assert_eq!(task.wait("").await, Ok(137));
            task.delete("").await.unwrap();
            if n + 1 < count {
                task.shutdown().await;
            }
        }
        let pid = shim.pid();
        tasks[0].shutdown().await;
        aside(|| shim.gone(pid));
        let exits = sink.topics().iter().filter(|t| *t == "exit").count();
        assert_eq!(exits, 2 * count);
    });
}

/// A file system whose server never answers. Mounted below a directory; dropped, whoever waits for it gets an error.
struct Mute {
    at: std::path::PathBuf,
    _server: fs::File,
}

impl Mute {
    fn mount(at: &Path) -> Self {
        use nix::mount::{MsFlags, mount};
        use std::os::fd::AsRawFd as _;
        fs::create_dir(at).unwrap();
        let server = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("open /dev/fuse");
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("mute"), at, Some("fuse"), flags, Some(data.as_str())).expect("mount");
        Self { at: at.to_path_buf(), _server: server }
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        let flags = nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW;
        nix::mount::umount2(&self.at, flags).expect("unmount");
    }
}

/// A mount that hangs, as one of a network file system whose server is away, holds up its own Create only: the other
/// containers of the shim are served, and their ends are told.
#[test]
fn a_mount_that_hangs_holds_nobody_else_up() {
    block_on(async {
        let (dir, sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        let other = shim.connect_for(&format!("{}m", shim.id)).await;
        let bundle = sleeper().write(&shim.dir.join("second"));
        let mute = Mute::mount(&dir.join("mute"));
        let source = mute.at.join("image");
        let mut request = task::CreateTaskRequest {
            id: format!("{}m", shim.id),
            bundle: bundle.to_str().unwrap().to_owned(),
            ..Default::default()
        };
        request.rootfs.push(pintle_proto::containerd::task::Mount {
            type_: "bind".to_owned(),
            source: source.to_str().unwrap().to_owned(),
            options: vec!["rbind".to_owned()],
            ..Default::default()
        });
        let hangs = tokio::spawn({
            let other = other.clone();
            async move { other.call::<_, task::CreateTaskResponse>("Create", &request).await }
        });
        let pid = shim.pid();
        wait_for_async("a thread that mounts", || async {
            let threads = pintle_tests::threads(pid);
            if threads == 2 { Ok(()) } else { Err(format!("{threads} threads")) }
        })
        .await;
        task.exec("e", "exit 3", None).await.unwrap();
        task.start("e").await.unwrap();
        assert_eq!(task.wait("e").await, Ok(3));
        task.kill("", 9).await.unwrap();
        assert_eq!(task.wait("").await, Ok(137));
        aside(|| sink.wait("/tasks/exit"));
        task.delete("").await.unwrap();
        assert!(!hangs.is_finished(), "the mount did not hang");
        // The server is gone, and the mount fails.
        drop(mute);
        let Refused(_, message) = hangs.await.unwrap().unwrap_err();
        assert!(message.contains(source.to_str().unwrap()), "{message}");
        wait_for("the thread to be gone", || pintle_tests::threads(pid) == 1);
        task.shutdown().await;
        aside(|| shim.gone(pid));
    });
}

/// A root file system in an image: mount(8) makes it, whose end is nobody else's but the reaper's. One that is no image is
/// refused in mount's own words.
#[test]
fn images_on_loop_devices() {
    block_on(async {
        let (dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let image = dir.join("image");
        let mut mkfs = Command::new(pintle_tests::require_tool("mkfs.ext4"));
        let made = output_within(mkfs.arg("-q").arg("-d").arg(rootfs()).arg(&image).arg("16M"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let probe = dir.join("probe");
        fs::create_dir(&probe).unwrap();
        let mounted = output_within(Command::new("mount").args(["-o", "loop,ro"]).arg(&image).arg(&probe));
        if !mounted.status.success() {
            println!("notice: left out: no loop device: {}", String::from_utf8_lossy(&mounted.stderr).trim());
            return;
        }
        assert!(output_within(Command::new("umount").arg(&probe)).status.success());
        let shim = TaskShim::start(&Bundle::sh("exit 5"), &settings);
        let source = |path: &Path| pintle_proto::containerd::task::Mount {
            type_: "ext4".to_owned(),
            source: path.to_str().unwrap().to_owned(),
            options: vec!["loop".to_owned(), "ro".to_owned()],
            ..Default::default()
        };
        // The end of a child that two wait for is lost at times only.
        for n in 0..6 {
            let task = shim.connect_for(&format!("{}l{n}", shim.id)).await;
            let bundle = Bundle::sh("exit 5").write(&shim.dir.join(format!("l{n}")));
            let config = bundle.join("config.json");
            let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
            spec["root"]["path"] = bundle.join("rootfs").to_str().unwrap().into();
            fs::write(&config, spec.to_string()).unwrap();
            task.create(&shim, |r| {
                r.bundle = bundle.to_str().unwrap().to_owned();
                r.rootfs.push(source(&image));
            })
            .await
            .unwrap_or_else(|e| panic!("create {n}: {e:?}"));
            task.start("").await.unwrap();
            assert_eq!(task.wait("").await, Ok(5), "{n}");
            task.delete("").await.unwrap();
        }
        let task = shim.connect_for(&format!("{}none", shim.id)).await;
        let bundle = Bundle::sh("exit 5").write(&shim.dir.join("none"));
        let refused = task.create(&shim, |r| {
            r.bundle = bundle.to_str().unwrap().to_owned();
            r.rootfs.push(source(&dir.join("no-image")));
        });
        let Refused(_, message) = refused.await.unwrap_err();
        assert!(message.contains("no-image") && message.contains("mount: "), "{message}");
        let pid = shim.pid();
        task.shutdown().await;
        aside(|| shim.gone(pid));
    });
}

/// Operators send SIGUSR1 to containerd's own shims for their stacks; what ends the shim ends the container.
#[test]
fn signals_do_not_end_the_server() {
    block_on(async {
        let (_dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        task.create(&shim, |_| {}).await.unwrap();
        task.start("").await.unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(shim.pid()).unwrap());
        use nix::sys::signal::Signal as S;
        for signal in [S::SIGHUP, S::SIGINT, S::SIGQUIT, S::SIGUSR1, S::SIGUSR2, S::SIGALRM, S::SIGTERM] {
            nix::sys::signal::kill(pid, signal).unwrap();
        }
        let state = task.state("").await.unwrap();
        assert_eq!(state.status.enum_value(), Ok(task::Status::RUNNING));
        finish(&shim, &task).await;
    });
}

/// On v1 a frozen process dies only when it is thawed, which not every runtime does for SIGKILL.
#[test]
fn a_paused_container_can_be_killed() {
    block_on(async {
        for runtime in [pintle_tests::runc(), crun()] {
            let (_dir, sink, _server, settings) = daemon(Caller::Old).await;
            let shim = TaskShim::start(&sleeper(), &settings);
            let task = shim.connect().await;
            let options = by(&runtime);
            task.create(&shim, |r| r.options = Some(options).into()).await.unwrap();
            task.start("").await.unwrap();
            task.plain::<Empty>("Pause").await.unwrap();
            task.kill("", 9).await.unwrap();
            let end = tokio::time::timeout(std::time::Duration::from_secs(60), task.wait("")).await;
            assert_eq!(end.expect("the end of a killed container"), Ok(137), "{}", runtime.display());
            finish(&shim, &task).await;
            assert_eq!(sink.topics(), ["create", "start", "paused", "exit", "delete"]);
        }
    });
}

#[test]
fn an_exec_whose_start_fails_leaves_no_process() {
    block_on(async {
        let (dir, _sink, _server, settings) = daemon(Caller::Old).await;
        let pid_file = dir.join("left");
        let fake = FakeRuntime::new().on("exec", Act::Script(start_and_fail(&pid_file)));
        let shim = TaskShim::start(&sleeper(), &settings);
        let task = shim.connect().await;
        let options = pack(&runc_options::Options {
            binary_name: fake.write(dir.path()).to_str().unwrap().to_owned(),
            ..Default::default()
        });
        task.create(&shim, |r| r.options = Some(options).into()).await.unwrap();
        task.start("").await.unwrap();
        task.exec("e", "exit 0", None).await.unwrap();
        assert!(task.start("e").await.is_err());
        let pid: u32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        aside(|| wait_for("the process of the failed exec to be gone", || !process_alive(pid)));
        assert_eq!(task.state("e").await.unwrap().status.enum_value(), Ok(task::Status::CREATED));
        finish(&shim, &task).await;
    });
}
