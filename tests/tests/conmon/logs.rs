//! Goldens of every log format, size limits, rotation.

use std::fs;
use std::path::Path;

use pintle_tests::{
    Bundle, Conmon, Running, TempDir, output_within, parse_cri, read_cri, rejoin, require_tool,
};

fn run(dir: &TempDir, script: &str, args: &[&str]) -> Running {
    let mut run = Conmon::create(dir, &Bundle::sh(script)).args(args).start();
    run.begin();
    run.exit_file();
    run.gone();
    run
}

/// The log with every time replaced.
fn golden(log: &[u8]) -> String {
    let records = parse_cri(log).expect("well formed");
    let time = &records.first().expect("a record").time;
    assert_eq!(time.len(), 35);
    String::from_utf8_lossy(log)
        .lines()
        .map(|line| format!("TIME{}\n", line.get(35..).unwrap_or_default()))
        .collect()
}

#[test]
fn k8s_file_golden() {
    let dir = TempDir::new("lg");
    let steps = dir.path().join("steps");
    fs::create_dir(&steps).expect("create");
    // Each write is read for itself: the next one waits until the last one is in the log.
    let script = "w() { until [ -e /mnt/$1 ]; do sleep 0.02; done; }; printf 'one\\ntwo\\n'; w 1; echo; w 2; \
                  printf 'part'; w 3; printf 'rest\\n'; w 4; printf 'err\\n' >&2; w 5; printf 'cr\\r\\n'; w 6; \
                  printf 'open'";
    let mut run = Conmon::create(&dir, &Bundle::sh(script).bind(&steps, "/mnt")).start();
    run.begin();
    let records = ["F two\n", "F \n", "P part\n", "F rest\n", "stderr F err\n", "F cr\r\n"];
    for (number, record) in records.iter().enumerate() {
        run.logged(record);
        fs::write(steps.join((number + 1).to_string()), "").expect("write");
    }
    run.exit_file();
    run.gone();
    assert_eq!(
        golden(&run.log()),
        "TIME stdout F one\nTIME stdout F two\nTIME stdout F \nTIME stdout P part\nTIME stdout F rest\n\
         TIME stderr F err\nTIME stdout F cr\nTIME stdout P open\n"
    );
    let log = run.log();
    assert!(log.windows(4).any(|window| window == b"cr\r\n"));
    // One time for all that one read brought.
    let records = parse_cri(&log).expect("well formed");
    assert_eq!(records[0].time, records[1].time);
    assert_ne!(records[1].time, records[2].time);
}

#[test]
fn k8s_file_is_verbatim() {
    let dir = TempDir::new("lg");
    let run = run(&dir, "printf 'a\\000b\\377\\376c\\td\\n'", &[]);
    assert_eq!(rejoin(&read_cri(&run.call.path("log")), "stdout"), b"a\0b\xff\xfec\td\n");
}

#[test]
fn k8s_file_splits_at_8192() {
    let dir = TempDir::new("lg");
    let run = run(
        &dir,
        "head -c 8192 /dev/zero | tr '\\0' x; sleep 0.2; echo; head -c 20000 /dev/zero | tr '\\0' y; echo",
        &[],
    );
    let records = read_cri(&run.call.path("log"));
    assert!(records.iter().all(|record| record.payload.len() <= 8192));
    // Usually one partial record; more where a loaded machine let the shim read in between.
    let full = records.iter().position(|record| !record.partial).expect("a full record");
    assert!(full >= 1 && records[full].payload.is_empty(), "8192 bytes, then the newline");
    let expected = [vec![b'x'; 8192], b"\n".to_vec(), vec![b'y'; 20_000], b"\n".to_vec()].concat();
    assert_eq!(rejoin(&records, "stdout"), expected);
}

#[test]
fn ctr_logs_20_a_long_line_has_partial_records() {
    let dir = TempDir::new("lg");
    let run = run(&dir, "head -c 65535 /dev/zero | tr '\\0' x; echo", &[]);
    let log = String::from_utf8(run.log()).expect("text");
    assert!(log.contains(" stdout P x"));
    let joined = rejoin(&read_cri(&run.call.path("log")), "stdout");
    assert_eq!(joined.len(), 65_536);
}

#[test]
fn the_time_zone_of_the_environment_counts() {
    let dir = TempDir::new("lg");
    let mut run = Conmon::create(&dir, &Bundle::sh("echo x")).env("TZ", "XYZ-03:30").start();
    run.begin();
    run.exit_file();
    let log = String::from_utf8(run.log()).expect("text");
    assert!(log.contains("+03:30 stdout F x\n"), "{log}");
}

#[test]
fn runtime_04_a_size_limit_truncates() {
    let dir = TempDir::new("lg");
    let run = run(&dir, "for i in 1 2 3 4 5; do echo line$i; done", &["--log-size-max", "10"]);
    let log = String::from_utf8(run.log()).expect("text");
    assert_eq!(golden(log.as_bytes()), "TIME stdout F line5\n");
    assert!(!run.call.path("log.1").exists());
}

#[test]
fn a_size_limit_counts_what_was_there() {
    let dir = TempDir::new("lg");
    let call = Conmon::create(&dir, &Bundle::sh("echo new"));
    let old = "2026-11-23T20:15:45.133617925+00:00 stdout F ".to_string() + &"o".repeat(300) + "\n";
    fs::write(call.path("log"), old).expect("write");
    let mut run = call.args(["--log-size-max", "350"]).start();
    run.begin();
    run.exit_file();
    assert_eq!(golden(&run.log()), "TIME stdout F new\n");
}

#[test]
fn a_global_limit_drops_the_rest_of_the_log_only() {
    let dir = TempDir::new("lg");
    let script = "for i in 1 2 3 4 5 6; do echo line$i; sleep 0.05; done";
    let mut run = Conmon::create(&dir, &Bundle::sh(script)).args(["--log-global-size-max", "120"]).start();
    run.created();
    let mut client = run.attach();
    run.go();
    assert_eq!(client.rest().0, b"line1\nline2\nline3\nline4\nline5\nline6\n");
    run.exit_file();
    // 50 bytes each: checked before a record, so the third one still goes in.
    assert_eq!(golden(&run.log()), "TIME stdout F line1\nTIME stdout F line2\nTIME stdout F line3\n");
}

#[test]
fn rotation_keeps_exactly_as_many_files_as_asked_for() {
    for keep in [1, 3] {
        let dir = TempDir::new("lg");
        let keep_text = keep.to_string();
        let args = ["--log-rotate", "--log-size-max", "60", "--log-max-files", &keep_text];
        let run = run(&dir, "for i in 1 2 3 4 5 6; do echo line$i; done", &args);
        assert_eq!(golden(&run.log()), "TIME stdout F line6\n");
        for number in 1..=keep {
            let file = run.call.path(&format!("log.{number}"));
            let text = golden(&fs::read(&file).expect("a backup"));
            assert_eq!(text, format!("TIME stdout F line{}\n", 6 - number));
        }
        assert!(!run.call.path(&format!("log.{}", keep + 1)).exists());
        assert!(!run.call.path("log.new").exists());
    }
}

#[test]
fn stale_files_do_not_stop_the_rotation() {
    let dir = TempDir::new("lg");
    let call = Conmon::create(&dir, &Bundle::sh("for i in 1 2 3; do echo line$i; done"));
    fs::write(call.path("log.new"), "stale").expect("write");
    fs::write(call.path("log.tmp"), "stale").expect("write");
    let mut run = call.args(["--log-rotate", "--log-size-max", "60"]).start();
    run.begin();
    run.exit_file();
    assert_eq!(golden(&run.log()), "TIME stdout F line3\n");
    assert_eq!(golden(&fs::read(run.call.path("log.1")).expect("the backup")), "TIME stdout F line2\n");
}

#[test]
fn two_drivers_of_which_one_is_none() {
    let dir = TempDir::new("lg");
    let run = run(&dir, "echo both", &["-l", "none"]);
    assert_eq!(golden(&run.log()), "TIME stdout F both\n");
}

/// Runs a script with a journald of its own, in a mount namespace.
fn with_journald(call: &Conmon, dir: &Path, query: &str) -> String {
    require_tool("journalctl");
    let script = r#"
set -e
mkdir -p /run/systemd /run/log /var/log
mount -t tmpfs t /run/systemd; mount -t tmpfs t /run/log; mount -t tmpfs t /var/log
mkdir -p /run/systemd/journal /run/log/journal
/lib/systemd/systemd-journald 2>/dev/null & j=$!
trap 'kill $j; wait $j 2>/dev/null || :' EXIT
for i in $(seq 600); do [ -S /run/systemd/journal/socket ] && break; sleep 0.05; done
"$@"
for i in $(seq 600); do "$RUNC" "--root=$ROOT" start "$ID" 2>/dev/null && break; sleep 0.05; done
for i in $(seq 600); do [ -e "$EXIT" ] && break; sleep 0.05; done
"$RUNC" "--root=$ROOT" delete -f "$ID"
journalctl --sync
eval "$QUERY"
"#;
    let inner = call.command();
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "--propagation", "private", "bash", "-c", script, "bash"]);
    command.arg(inner.get_program()).args(inner.get_args()).current_dir(dir);
    command.env("RUNC", pintle_tests::runc()).env("ROOT", call.path("root")).env("ID", &call.id);
    command.env("EXIT", call.path("exits").join(&call.id)).env("QUERY", query);
    let output = output_within(&mut command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn journald_golden() {
    let dir = TempDir::new("lg");
    let script = "echo one; sleep 0.2; echo two >&2; printf 'open '; sleep 0.2; printf 'line\\n'; sleep 0.2; \
                  echo '<5>prefix'; sleep 0.2; printf end";
    let call = Conmon::create(&dir, &Bundle::sh(script));
    let log = call.path("log");
    let call = call.args([
        "-l",
        "journald",
        "--log-tag",
        "thetag",
        "--log-label",
        "MY_LABEL=value",
        "--log-label",
        "B2=x y",
    ]);
    let query = format!("journalctl -o json CONTAINER_ID_FULL={}", call.id);
    let text = with_journald(&call, dir.path(), &query);
    let records: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    let shown: Vec<(String, String, bool)> = records
        .iter()
        .map(|record| {
            let field = |name: &str| record[name].as_str().unwrap_or_default().to_string();
            (field("MESSAGE"), field("PRIORITY"), record["CONTAINER_PARTIAL_MESSAGE"] == "true")
        })
        .collect();
    let row = |message: &str, priority: &str, partial| (message.to_string(), priority.to_string(), partial);
    // A line is one record however it was written; only the unfinished end is partial. The prefix is text.
    let expected = [
        row("one\n", "6", false),
        row("two\n", "3", false),
        row("open line\n", "6", false),
        row("<5>prefix\n", "6", false),
        row("end", "6", true),
    ];
    // journalctl shows a message with a trailing newline as such, or trimmed by newer ones.
    let plain = |rows: &[(String, String, bool)]| -> Vec<(String, String, bool)> {
        rows.iter()
            .map(|(message, priority, partial)| (message.trim_end().to_string(), priority.clone(), *partial))
            .collect()
    };
    assert_eq!(plain(&shown), plain(&expected), "{text}");
    for record in &records {
        let id = &call.id;
        assert_eq!(record["CONTAINER_ID_FULL"], id.as_str());
        assert_eq!(record["CONTAINER_ID"], &id[..12]);
        assert_eq!(record["CONTAINER_NAME"], "name");
        assert_eq!(record["CONTAINER_TAG"], "thetag");
        assert_eq!(record["SYSLOG_IDENTIFIER"], "thetag");
        assert_eq!(record["MY_LABEL"], "value");
        assert_eq!(record["B2"], "x y");
        assert_eq!(record["_COMM"], "conmon");
    }
    // And the file has it all, too.
    let file = rejoin(&read_cri(&log), "stdout");
    assert_eq!(file, b"one\nopen line\n<5>prefix\nend");
}

#[test]
fn ctr_logs_16_18_19_journald_queries() {
    let dir = TempDir::new("lg");
    let script = "head -c 65535 /dev/zero | tr '\\0' x; echo";
    let call = Conmon::create(&dir, &Bundle::sh(script))
        .replace("-l", "journald:")
        .args(["--log-label", "TEST_LABEL=1"]);
    let query = "journalctl -o cat CONTAINER_PARTIAL_MESSAGE=true | wc -l; \
                 journalctl -q -o cat TEST_LABEL=1 | tr -d '\\n' | wc -c; \
                 journalctl -q -o cat TEST_LABEL=2 | wc -l";
    let text = with_journald(&call, dir.path(), query);
    let numbers: Vec<usize> =
        text.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    assert!(numbers[0] >= 1, "{text}");
    assert_eq!(numbers[1..], [65_535, 0], "{text}");
    let dir = TempDir::new("lg");
    let call = Conmon::create(&dir, &Bundle::sh(script))
        .replace("-l", "journald:")
        .arg("--no-container-partial-message");
    let text =
        with_journald(&call, dir.path(), "journalctl -q -o cat CONTAINER_PARTIAL_MESSAGE=true | wc -l");
    assert_eq!(text.trim(), "0");
}

#[test]
fn ctr_logs_03_journald_that_is_not_there_loses_nothing_else() {
    let dir = TempDir::new("lg");
    let run = run(&dir, "echo kept", &["-l", "journald"]);
    assert_eq!(golden(&run.log()), "TIME stdout F kept\n");
}
