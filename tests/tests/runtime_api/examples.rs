//! The examples of the client crate, run as a reader would.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use pintle_tests::{
    Bundle, Leftovers, Native, TempDir, parse_cri, rejoin, runc, scaled, shim, wait_exit, wait_for,
    wait_for_async,
};

/// Builds the examples once (`cargo test --workspace` has done it already, with the same features); gives the directory they are in.
fn examples() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
            let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_path_buf();
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let built = Command::new(cargo)
                .args([
                    "build",
                    "--quiet",
                    "--offline",
                    "--package",
                    "pintle-client",
                    "--examples",
                    "--target-dir",
                ])
                .arg(&target)
                .current_dir(&root)
                .status()
                .expect("run cargo");
            assert!(built.success(), "build the examples");
            target.join("debug/examples")
        })
        .clone()
}

#[test]
fn the_engine_runs_probes_restarts_and_stops() {
    let dir = TempDir::new("exeng");
    let script = "trap 'exit 0' TERM; n=0; while [ $n -lt 30 ]; do n=$((n+1)); sleep 0.1; done; exit 1";
    let bundle = Bundle::sh(script).write(dir.path());
    let containers = scaled(10, 50);
    let mut engine = Command::new(examples().join("engine"))
        .arg("--bundle")
        .arg(&bundle)
        .args(["--containers", &containers.to_string(), "--plain", "--restart", "on-failure", "--runtime"])
        .arg(runc())
        .arg("--dir")
        .arg(dir.join("engine"))
        .env("PINTLE_SHIM", shim())
        .stdout(std::fs::File::create(dir.join("out")).unwrap())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let out = || std::fs::read_to_string(dir.join("out")).unwrap();
    // The sum of a kind in the newest line of the view.
    let number = |word: &str| -> usize {
        let out = out();
        let line = out.lines().rfind(|l| l.contains("running")).unwrap_or_default().to_owned();
        let mut words = line.split_whitespace().skip_while(|w| *w != word).skip(1);
        words.next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    wait_for("probes and restarts", || {
        assert!(engine.try_wait().unwrap().is_none(), "the engine ended: {}", out());
        number("probes") >= containers && number("restarts") >= 1
    });
    let pid = nix::unistd::Pid::from_raw(engine.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGINT).unwrap();
    let status = wait_exit(&mut engine);
    let out = out();
    assert!(status.success() && out.contains("stopping everything"), "{status}: {out}");
    assert!(!dir.join("engine").exists());
    Leftovers::of(dir.path().to_string_lossy()).and(format!("engine-{pid}-")).assert_none();
}

#[tokio::test]
async fn the_rotator_loses_no_line() {
    let place = Native::new("exrot");
    let lines = 20_000;
    let script = "i=0; while [ $i -lt 20 ]; do seq $((i*1000+1)) $((i*1000+1000)); i=$((i+1)); sleep 0.05; done; sleep 1000";
    let c = place.start(&Bundle::sh(script)).await;
    let mut rotator = Command::new(examples().join("log_rotator"))
        .arg("--dir")
        .arg(place.root())
        .args(["--max-size", "65536", "--max-files", "1000", "--interval-ms", "5"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let all = || {
        let dir = std::fs::read_dir(c.log.parent().unwrap()).unwrap().flatten();
        let mut files: Vec<_> =
            dir.map(|e| e.path()).filter(|p| p.to_string_lossy().contains("/log.")).collect();
        files.sort();
        let rotated = files.len();
        files.push(c.log.clone());
        let text: Vec<u8> = files.iter().flat_map(|f| std::fs::read(f).unwrap_or_default()).collect();
        (rotated, text)
    };
    wait_for_async("every line, and rotated files", async || {
        let (rotated, text) = all();
        let last = String::from_utf8_lossy(&text).contains(&format!(" {lines}\n"));
        if last && rotated >= 1 { Ok(()) } else { Err(format!("{rotated} files, {} bytes", text.len())) }
    })
    .await;
    rotator.kill().unwrap();
    rotator.wait().unwrap();
    // Read again: a file may have been renamed under the reader before.
    let (_, text) = all();
    let records = parse_cri(&text).unwrap();
    // A line may be cut in two where the log was opened anew; no byte of it is lost.
    let written = String::from_utf8(rejoin(&records, "stdout")).unwrap();
    let expected: String = (1..=lines).map(|n| format!("{n}\n")).collect();
    assert!(written == expected, "{} bytes instead of {}", written.len(), expected.len());
    c.delete().await;
    place.finish();
}
