//! Exec: through conmon's command line, through the native call, and bare.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{Scale, native};
use crate::{
    lab::{Lab, Who, until},
    measure::machine_cpu,
    report::Report,
};

/// `process` of the OCI runtime spec for `true`.
pub(crate) const PROCESS: &str =
    r#"{"terminal":false,"user":{"uid":0,"gid":0},"args":["/bin/true"],"cwd":"/","env":["PATH=/bin"]}"#;

/// Exec and exec sync.
pub(crate) fn exec(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let rounds = scale.of(200, 10);
    let process = lab.dir.join("process.json");
    fs::write(&process, PROCESS)?;
    let mut of = Vec::new();
    for who in Who::BOTH {
        let one = lab.create(who, &["sleep", "100000"], "k8s-file", &[], None)?;
        lab.start(&one)?;
        of.push(one);
    }
    let [ref conmon, ref pintle] = of[..] else { unreachable!("two were made") };
    let client = native::Client::connect(&pintle.id)?;
    // The engine started it behind the shim's back, which sees that a moment later.
    until(Duration::from_secs(60), || Ok(client.exec(PROCESS).ok()))?;
    let (mut bare, mut door, mut ours, mut call) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let pid_file = lab.dir.join("bare.pid");
        let began = Instant::now();
        let status = Command::new(&lab.runc)
            .arg("--root")
            .arg(lab.dir.join("runc"))
            .args(["exec", "--detach", "--process"])
            .arg(&process)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&pintle.id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        bare.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(status.success(), "runc exec failed");
        // It is a child of this subreaper now, and the container cannot end before it is reaped.
        let pid = fs::read_to_string(&pid_file)?.trim().parse()?;
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)?;
        door.push(lab.exec(Who::Conmon, conmon, &process, round)?.as_secs_f64() * 1e3);
        ours.push(lab.exec(Who::Pintle, pintle, &process, round)?.as_secs_f64() * 1e3);
        let began = Instant::now();
        client.exec(PROCESS)?;
        call.push(began.elapsed().as_secs_f64() * 1e3);
    }
    report.add("exec", "bare runc exec --detach", "ms", "floor", bare);
    report.add("exec", "conmon command line to pid", "ms", "conmon", door);
    report.add("exec", "conmon command line to pid", "ms", "pintle", ours);
    report.add("exec", "native Exec", "ms", "pintle", call);
    // The whole machine's CPU for each call, so the figure needs an otherwise quiet machine.
    for who in Who::BOTH {
        let busy = machine_cpu()?;
        let (mut took, n) = (Vec::new(), rounds);
        for round in 0..n {
            let began = Instant::now();
            match who {
                Who::Conmon => {
                    lab.exec(who, conmon, &process, rounds + round)?;
                }
                Who::Pintle => client.exec_sync(&["/bin/true"])?,
            }
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        report.add(
            "exec",
            "exec sync: CPU a call",
            "ms",
            who.name(),
            vec![(machine_cpu()? - busy) * 1e3 / n as f64],
        );
        report.add("exec", "exec sync: wall a call", "ms", who.name(), took);
    }
    let (wall, each) = client.exec_parallel(64)?;
    report.add("exec", "64 native ExecSync at once", "ms", "pintle", vec![wall.as_secs_f64() * 1e3]);
    report.add("exec", "64 native ExecSync at once: each", "ms", "pintle", each);
    for one in &of {
        lab.end(one)?;
    }
    let at = |case, who, part| report.value("exec", case, who, part);
    let over = |part| {
        at("native Exec", "pintle", part)
            .zip(at("bare runc exec --detach", "floor", part))
            .map(|(a, b)| a - b)
    };
    let ratio = at("native Exec", "pintle", 0.5)
        .zip(at("conmon command line to pid", "conmon", 0.5))
        .map(|(a, b)| a / b);
    let cpu = at("exec sync: CPU a call", "pintle", 0.5)
        .zip(at("exec sync: CPU a call", "conmon", 0.5))
        .map(|(a, b)| a / b);
    let (p50, p99) = (over(0.5), over(0.99));
    report.goal("exec over bare `runc exec --detach`, p50", p50, 1.5, false, "ms");
    report.goal("exec over bare `runc exec --detach`, p99", p99, 4.0, false, "ms");
    report.goal("exec over conmon's exec path, p50", ratio, 0.9, false, "x");
    report.goal("exec-sync CPU over conmon's", cpu, 0.85, false, "x");
    Ok(())
}
