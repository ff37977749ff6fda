//! The distribution packages that building and testing need, in one list.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::sh;

/// A Debian package, the program by which its presence is seen, and whether we can do without it.
struct Package {
    name: &'static str,
    program: &'static str,
    optional: bool,
}

const fn need(name: &'static str, program: &'static str) -> Package {
    Package { name, program, optional: false }
}

const fn nice(name: &'static str, program: &'static str) -> Package {
    Package { name, program, optional: true }
}

/// What the tests need.
const TEST: &[Package] = &[
    need("runc", "runc"),
    need("crun", "crun"),
    need("busybox-static", "busybox"),
    need("conmon", "conmon"),
    need("podman", "podman"),
    need("containerd", "containerd"),
    need("criu", "criu"),
    need("strace", "strace"),
    need("util-linux", "unshare"),
    need("iproute2", "ip"),
    need("procps", "ps"),
    need("iptables", "iptables"),
    need("systemd", "journalctl"),
    nice("user-mode-linux", "linux.uml"),
    nice("dmsetup", "dmsetup"),
    nice("e2fsprogs", "mkfs.ext4"),
];

/// What the demonstration needs of it.
const DEMO: &[&str] = &["runc", "busybox-static"];

/// What a build on a fresh machine needs: a linker.
const BUILD: &[Package] = &[need("gcc", "cc")];

pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    if args.iter().any(|a| a == "--print") {
        let names: Vec<&str> = BUILD.iter().chain(TEST).map(|p| p.name).collect();
        println!("{}", names.join(" "));
        return Ok(());
    }
    ensure_for_tests()
}

/// Installs what the tests need, or says what to install.
pub(crate) fn ensure_for_tests() -> Result<()> {
    ensure(&BUILD.iter().chain(TEST).collect::<Vec<_>>())
}

/// Installs what the demonstration needs, or says what to install.
pub(crate) fn ensure_for_demo() -> Result<()> {
    let demo = TEST.iter().filter(|p| DEMO.contains(&p.name));
    ensure(&BUILD.iter().chain(demo).collect::<Vec<_>>())
}

fn missing<'a>(list: &[&'a Package]) -> Vec<&'a Package> {
    list.iter().copied().filter(|p| sh::which(p.program).is_none()).collect()
}

fn ensure(list: &[&Package]) -> Result<()> {
    let absent = missing(list);
    if absent.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = absent.iter().map(|p| p.name).collect();
    let root = nix::unistd::geteuid().is_root();
    if root && sh::which("apt-get").is_some() {
        eprintln!("installing: {}", names.join(" "));
        apt(&["update"]);
        // Together first, then one by one: a package that one release lacks must not keep the others out.
        if !apt(&[&["install", "-y", "--no-install-recommends"], names.as_slice()].concat()) {
            for p in missing(list) {
                apt(&["install", "-y", "--no-install-recommends", p.name]);
            }
        }
    }
    let absent = missing(list);
    for p in absent.iter().filter(|p| p.optional) {
        eprintln!("notice: {} is not installed: what needs it will be said to be left out", p.name);
    }
    let hard: Vec<&str> = absent.iter().filter(|p| !p.optional).map(|p| p.name).collect();
    if !hard.is_empty() {
        bail!("missing programs; as root: apt-get install -y --no-install-recommends {}", hard.join(" "));
    }
    Ok(())
}

/// One apt-get call, tried three times; true when it worked.
fn apt(args: &[&str]) -> bool {
    for attempt in 1..=3u64 {
        let mut c = Command::new("apt-get");
        c.args(["-q", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300"])
            .args(["-o", "Dpkg::Options::=--force-confold"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        match sh::capture(&mut c, Duration::from_secs(900)) {
            Ok(out) if out.status.is_some_and(|s| s.success()) => return true,
            Ok(out) => eprintln!("{} (attempt {attempt}):\n{}", sh::show(&c), sh::tail(&out.output, 15)),
            Err(e) => eprintln!("{e:#}"),
        }
        std::thread::sleep(Duration::from_secs(3 * attempt));
    }
    false
}
