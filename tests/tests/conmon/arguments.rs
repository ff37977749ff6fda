//! Command lines: what is refused and how, and what the launcher accepts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Output;

use pintle_tests::{Conmon, TempDir, conmon, output_within, require_tool};

/// A directory passes as a runtime: only its existence and permission are checked.
const VALID: &str = "/tmp";
/// Long enough for journald.
const ID: &str = "0123456789abcdef";

fn call(dir: &TempDir, args: &[&str]) -> Output {
    let place = dir.path().display().to_string();
    let args = args.iter().map(|arg| arg.replace("DIR", &place));
    Conmon::bare(dir.path(), ID).args(args).refused()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn refused(args: &[&str], text: &str) {
    let dir = TempDir::new("ar");
    let output = call(&dir, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
    assert_eq!(stderr(&output), format!("{text}\n"), "{args:?}");
    assert!(output.stdout.is_empty());
}

/// The call is accepted: the launcher ends with 0, whatever comes of the runtime.
#[track_caller]
fn accepted(args: &[&str], check: impl FnOnce(&TempDir, &Output)) {
    let dir = TempDir::new("ar");
    let mut all =
        vec!["--cid", ID, "--cuuid", ID, "--runtime", VALID, "--bundle", "DIR", "--socket-dir-path", "DIR"];
    all.extend(args);
    let output = call(&dir, &all);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    check(&dir, &output);
}

/// The call is refused after everything that comes before log drivers was right.
#[track_caller]
fn refused_log(args: &[&str], text: &str) {
    let mut all = vec!["--cid", ID, "--cuuid", ID, "--runtime", VALID];
    all.extend(args);
    refused(&all, &format!("[conmon:e]: {text}"));
}

#[test]
fn basic_01_version() {
    let output = output_within(std::process::Command::new(conmon()).arg("--version"));
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let version = lines[0].strip_prefix("conmon version ").expect("the first words");
    let parts: Vec<u32> = version.split('.').map(|part| part.parse().expect("a number")).collect();
    assert_eq!(parts.len(), 3);
    assert!(parts >= vec![2, 1, 12], "callers enable features by version: {version}");
    assert!(lines[1].starts_with("commit: "));
    assert!(output.stderr.is_empty());
}

#[test]
fn basic_02_to_06_required_options() {
    refused(&["--cuuid", ID], "conmon: Container ID not provided. Use --cid");
    refused(&["--cid", ID], "[conmon:e]: Container UUID not provided. Use --cuuid");
    refused(&["--cid", ID, "--cuuid", ID], "[conmon:e]: Runtime path not provided. Use --runtime");
    let text = "[conmon:e]: Runtime path /no/such is not valid No such file or directory";
    refused(&["--cid", ID, "--cuuid", ID, "--runtime", "/no/such"], text);
    refused_log(&[], "Log driver not provided. Use --log-path");
}

#[test]
fn basic_07_to_10_empty_log_paths() {
    for value in ["", ":", "::"] {
        refused_log(&["--log-path", value], "log-path must not be empty");
    }
    for value in ["k8s-file", "k8s-file:"] {
        refused_log(&["--log-path", value], "k8s-file requires a filename");
    }
}

#[test]
fn basic_11_to_20_log_files() {
    for value in
        ["DIR/the.log", "k8s-file:DIR/the.log", ":DIR/the.log", "k8s-file::DIR/the.log", "::DIR/the.log"]
    {
        accepted(&["--log-path", value], |dir, _| assert!(dir.join("the.log").is_file(), "{value}"));
    }
    accepted(&["--log-path", ":journald"], |dir, _| assert!(dir.join("journald").is_file()));
    for value in ["none", "none:", "off:", "null:", "journald:", "none:x", "passthrough:"] {
        accepted(&["--log-path", value], |dir, _| {
            let name = value.split(':').next().expect("a name");
            assert!(!dir.join(name).exists(), "{value}");
        });
    }
    accepted(&["--log-path", "k8s-file:DIR/a:b.log"], |dir, _| {
        assert!(dir.join("a:b.log").exists() && !dir.join("a").exists());
    });
}

#[test]
fn basic_19_short_id_with_journald() {
    let args = ["--cid", "123456789012", "--cuuid", "1", "--runtime", VALID, "--log-path", "journald:"];
    refused(&args, "[conmon:e]: Container ID must be longer than 12 characters");
}

#[test]
fn basic_21_to_25_bad_drivers() {
    refused_log(&["--log-path", "/no/such/dir/log"], "Failed to open log file No such file or directory");
    refused_log(&["--log-path", "/tmp"], "Failed to open log file Is a directory");
    refused_log(&["--log-path", "invalid:DIR/x"], "No such log driver invalid");
    refused_log(&["--log-path", "invalid:"], "No such log driver invalid");
    accepted(&["--log-path", "k8s-file:DIR/log", "--log-path", "journald:"], |dir, _| {
        assert!(dir.join("log").is_file());
    });
    refused_log(&["--log-path", "k8s-file:DIR/log", "--log-path", "invalid:x"], "No such log driver invalid");
    refused_log(&["--log-path", "invalid_driver:"], "No such log driver invalid_driver");
}

#[test]
fn ctr_logs_08_09_partial_marker() {
    accepted(&["--log-path", "journald:", "--no-container-partial-message"], |_, output| {
        assert!(!stderr(output).contains("no effect"));
    });
    accepted(&["--log-path", "k8s-file:DIR/log", "--no-container-partial-message"], |_, output| {
        let text = "[conmon:w]: --no-container-partial-message has no effect without journald log driver\n";
        assert_eq!(stderr(output), text);
    });
}

#[test]
fn ctr_logs_11_to_17_labels_and_tags() {
    let label =
        |value: &str, text: &str| refused_log(&["--log-path", "journald:", "--log-label", value], text);
    let format = "Container labels must be in format LABEL=VALUE";
    label("LABEL", &format!("{format} (none or more than one '=' present in 'LABEL')"));
    label("A=B=C", &format!("{format} (none or more than one '=' present in 'A=B=C')"));
    label("=x", &format!("{format} (no LABEL present in '=x')"));
    let text =
        "Container label names must contain only uppercase letters, numbers and underscore (in 'a-b=c')";
    label("a-b=c", text);
    refused_log(
        &["--log-path", "k8s-file:DIR/log", "--log-label", "A=B"],
        "k8s-file doesn't support --log-label",
    );
    refused_log(&["--log-path", "k8s-file:DIR/log", "--log-tag", "t"], "k8s-file doesn't support --log-tag");
    let args = [
        "--log-path",
        "k8s-file:DIR/log",
        "--log-path",
        "journald",
        "--log-label",
        "A_1=B",
        "--log-tag",
        "t",
    ];
    accepted(&args, |_, _| {});
}

#[test]
fn log_rotation_01_to_03_and_management_02_to_06() {
    accepted(&["--log-path", "DIR/log"], |dir, _| assert!(dir.join("log").is_file()));
    for size in ["0", "50", "1024", "1048576", "-1"] {
        for rotate in [&[][..], &["--log-rotate"][..], &["--log-rotate", "--log-max-files", "3"][..]] {
            let mut args = vec!["--log-path", "k8s-file:DIR/log", "--log-size-max", size];
            args.extend(rotate);
            accepted(&args, |dir, _| {
                fs::write(dir.join("log"), "kept").expect("write");
                assert_eq!(fs::read_to_string(dir.join("log")).expect("read"), "kept");
                assert!(!dir.join("log.1").exists());
            });
        }
    }
    let both = [
        "--log-path",
        "k8s-file:DIR/log",
        "--log-path",
        "journald",
        "--log-rotate",
        "--log-size-max",
        "1024",
    ];
    accepted(&both, |_, _| {});
}

#[test]
fn log_management_01_07_max_files() {
    let log = ["--log-path", "k8s-file:/tmp/x"];
    let number = |value: &'static str| [&log[..], &["--log-max-files", value]].concat();
    refused(&number("-1"), "conmon: log-max-files must be non-negative, got -1");
    let output = call(&TempDir::new("ar"), &number("2147483648"));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("out of range"), "{}", stderr(&output));
    let text = "conmon: log-max-files must be at least 1 when log-rotate is enabled, got 0";
    refused(&[&number("0")[..], &["--log-rotate"]].concat(), text);
    accepted(&["--log-path", "DIR/log", "--log-rotate", "--log-max-files", "1"], |_, _| {});
    accepted(&["--log-path", "DIR/log", "--log-max-files", "5"], |_, _| {});
    accepted(&["--log-path", "DIR/log", "--log-max-files", "0"], |_, _| {});
    accepted(&["--log-path", "DIR/log", "--log-rotate"], |_, _| {});
}

#[test]
fn log_management_08_09_mode_and_links() {
    accepted(&["--log-path", "k8s-file:DIR/log"], |dir, _| {
        let mode = fs::metadata(dir.join("log")).expect("the log").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    });
    let dir = TempDir::new("ar");
    fs::create_dir(dir.join("real")).expect("create");
    symlink(dir.join("real"), dir.join("link")).expect("link");
    let args = ["--cid", ID, "--cuuid", ID, "--runtime", VALID, "--bundle", "DIR", "--full-attach"];
    let output = call(&dir, &[&args[..], &["--log-path", "k8s-file:DIR/link/log"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(dir.join("real/log").is_file());
}

#[test]
fn log_management_10_to_13_old_options_and_allow_lists() {
    let old = ["--log-path", "k8s-file:DIR/log", "--log-size-max", "1000", "--log-global-size-max", "5000"];
    accepted(&old, |_, _| {});
    accepted(&["--log-path", "DIR/log", "--log-allowlist-dir", "DIR"], |_, _| {});
    accepted(
        &["--log-path", "DIR/log", "--log-allowlist-dir", "DIR", "--log-allowlist-dir", "/tmp"],
        |_, _| {},
    );
}

#[test]
fn log_management_11_unwritable_directory() {
    // Root may write anywhere, so the directory must be one that nobody can write to.
    refused_log(
        &["--log-path", "k8s-file:/proc/self/log"],
        "Failed to open log file No such file or directory",
    );
}

#[test]
fn exec_status_01_02_help_and_missing_spec() {
    for flag in ["--help", "-h", "-?", "--help-all"] {
        let output = output_within(std::process::Command::new(conmon()).arg(flag));
        assert!(output.status.success(), "{flag}");
        let text = String::from_utf8(output.stdout).expect("text");
        for word in ["--exec", "--log-global-size-max", "journald", "Usage:"] {
            assert!(text.contains(word), "{flag}: {word} is missing in {text}");
        }
    }
    let text = "[conmon:e]: Exec process spec path not provided. Use --exec-process-spec";
    refused(&["--cid", ID, "--exec", "--runtime", VALID], text);
}

#[test]
fn oom_01_the_message_is_in_the_program() {
    let program = fs::read(conmon()).expect("the program");
    let text = b"Cgroup appears to have been removed";
    assert!(program.windows(text.len()).any(|window| window == text));
}

#[test]
fn priority_parsing_01_to_09_the_launcher_accepts_a_terminal() {
    accepted(&["--log-path", "journald:", "--terminal"], |_, _| {});
    accepted(&["--log-path", "journald:", "--log-path", "k8s-file:DIR/log", "--terminal"], |dir, _| {
        assert!(dir.join("log").is_file());
    });
}

#[test]
fn combinations_that_make_no_sense() {
    let base = ["--cid", ID, "--runtime", VALID];
    let with = |args: &[&'static str]| [&base[..], args].concat();
    let text = "[conmon:e]: Cannot use 'exec' and 'restore' at the same time";
    refused(&with(&["--exec", "--restore", "x"]), text);
    refused(&with(&["--exec-attach"]), "[conmon:e]: Attach can only be specified with exec");
    let text = "[conmon:e]: Attach can only be specified for a non-legacy exec session";
    refused(&with(&["--exec", "--exec-attach"]), text);
    refused(&with(&["--log-level", "loud"]), "[conmon:e]: No such log level loud");
    let text = "[conmon:e]: Delay before invoking exit command must be greater than or equal to 0";
    refused(&with(&["--cuuid", ID, "--exit-delay", "-1"]), text);
}

#[test]
fn parse_errors() {
    let parse = |args: &[&str], text: &str| {
        let dir = TempDir::new("ar");
        let output = Conmon::bare(dir.path(), ID).args(args).env("LC_ALL", "C.UTF-8").refused();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(stderr(&output), format!("conmon: option parsing failed: {text}\n"), "{args:?}");
    };
    parse(&["--bogus"], "Unknown option --bogus");
    parse(&["--bogus=1", "--help"], "Unknown option --bogus=1");
    parse(&["-Z"], "Unknown option -Z");
    parse(&["-cfoo", "x"], "Unknown option -cfoo");
    parse(&["--cid"], "Missing argument for --cid");
    parse(&["-c"], "Missing argument for -c");
    parse(&["--timeout", "abc"], "Cannot parse integer value “abc” for --timeout");
    parse(&["-T", "99999999999"], "Integer value “99999999999” for -T out of range");
    parse(&["--version", "--bogus"], "Unknown option --bogus");
    let dir = TempDir::new("ar");
    let output = Conmon::bare(dir.path(), ID).args(["-T", "x"]).env("LC_ALL", "C").refused();
    assert!(stderr(&output).contains("value ?x? for"), "{}", stderr(&output));
}

/// What Debian's conmon says to a wrong command line, we say, too.
#[test]
fn the_same_words_as_the_peer() {
    let peer = require_tool("conmon");
    let dir = TempDir::new("ar");
    let rows: &[&[&str]] = &[
        &[],
        &["--bogus"],
        &["--bogus=1"],
        &["-cfoo"],
        &["-cfoo", "x"],
        &["-c=foo", "x"],
        &["-cT", "1"],
        &["-tZ"],
        &["--cid"],
        &["--timeout", "abc"],
        &["--timeout", ""],
        &["--timeout=0x"],
        &["--log-size-max", "abc"],
        &["--log-size-max", "99999999999999999999999"],
        &["-T", "-99999999999"],
        &["--", "--cid", "x"],
        &["--cid", "x", "--", "--cuuid", "x"],
        &["--cid", ID, "--cuuid", ID, "--runtime", "/no/such"],
        &["--cid", ID, "--cuuid", ID, "--runtime", VALID, "--log-path", "json-file:x"],
        &["--cid", ID, "--cuuid", ID, "--runtime", VALID, "--log-path", "/no/such/log"],
    ];
    for args in rows {
        let ours = Conmon::bare(dir.path(), ID).args(*args).env("LC_ALL", "C.UTF-8");
        let theirs = Conmon::bare(dir.path(), ID).args(*args).env("LC_ALL", "C.UTF-8").program(&peer);
        let (ours, theirs) = (ours.refused(), theirs.refused());
        assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
        // 2.1.6 leaves the colon out at some places.
        // And it tells some errors on stdout.
        let plain = |output: &Output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(output);
            text.replace("[conmon:e] ", "[conmon:e]: ")
        };
        assert_eq!(plain(&ours), plain(&theirs), "{args:?}");
    }
}

#[test]
fn bytes_that_are_no_text_are_taken_in_any_locale() {
    use std::os::unix::ffi::OsStrExt;
    let dir = TempDir::new("ar");
    let name = std::ffi::OsStr::from_bytes(b"l\xf6g\xff");
    let log = dir.path().join(name);
    let base = ["--cid", ID, "--cuuid", ID, "--runtime", VALID, "--full-attach", "--log-path"];
    let output = Conmon::bare(dir.path(), ID).args(base).arg(&log).env("LC_ALL", "C").refused();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(log.is_file());
}

#[test]
fn pipes_that_are_not_open_are_refused() {
    let dir = TempDir::new("ar");
    let base = ["--cid", ID, "--cuuid", ID, "--runtime", VALID, "--full-attach", "--log-path", "none"];
    let start = |value: &str| Conmon::bare(dir.path(), ID).args(base).env("_OCI_STARTPIPE", value).refused();
    for value in ["x", "", "-1", "1x"] {
        let output = start(value);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).starts_with("[conmon:e]: unable to parse _OCI_STARTPIPE"),
            "{}",
            stderr(&output)
        );
    }
    let output = start("77");
    assert_eq!(output.status.code(), Some(1));
    let text = "[conmon:e]: unable to make _OCI_STARTPIPE CLOEXEC Bad file descriptor\n";
    assert_eq!(stderr(&output), text);
}

#[test]
fn a_working_directory_that_is_gone() {
    let dir = TempDir::new("ar");
    let gone = dir.path().join("gone");
    let script = "mkdir \"$0\" && cd \"$0\" && rmdir \"$0\" && exec \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).arg(&gone).arg(conmon());
    let output = output_within(command.args(["-c", ID, "-u", ID, "-r", VALID, "-l", "none"]));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "[conmon:e]: Failed to get working directory\n");
}

/// With a `/dev` of its own, where the test is the logger.
#[test]
fn own_messages_go_to_syslog() {
    let dir = TempDir::new("ar");
    let dev = dir.path().join("dev");
    fs::create_dir(&dev).expect("create");
    fs::write(dev.join("null"), "").expect("create");
    let logger = std::os::unix::net::UnixDatagram::bind(dev.join("log")).expect("bind");
    let script = "mount --bind /dev/null \"$0/null\" && mount --rbind \"$0\" /dev && exec \"$@\"";
    let told = |args: &[&str]| {
        let mut command = std::process::Command::new(require_tool("unshare"));
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&dev).arg(conmon());
        let output = output_within(command.args(args));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        logger.set_nonblocking(true).expect("set");
        let mut buffer = [0; 4096];
        let heard = logger.recv(&mut buffer).ok();
        heard.map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let text = "Runtime path /no/such is not valid No such file or directory";
    let base = ["-c", "0123456789abcdef0123456789", "-u", ID, "-r", "/no/such", "-l", "none"];
    assert_eq!(told(&base), None, "without --syslog");
    // Priority: facility user, error. The id is cut to 20 characters.
    let expected = format!("<11>conmon: conmon 0123456789abcdef0123 <error>: {text}");
    assert_eq!(told(&[&base[..], &["--syslog"]].concat()), Some(expected));
    let tagged = [&["-c", "short", "--syslog", "--log-tag", "tag"][..], &base[2..]].concat();
    assert_eq!(told(&tagged), Some(format!("<11>conmon: conmon short: tag <error>: {text}")));
}
