//! The next Debian release's criu and guest kernel, unpacked beside the host's.
//!
//! Debian 12's criu does not start on newer kernels, and its user-mode kernel is old. The packages of
//! the next release come from the mirror that the host's own apt uses, checked by apt against Debian's
//! keys, and are unpacked into `target/newer/root`; nothing is installed and the host's apt keeps its
//! state. `target/newer/criu` starts that criu with its own libraries. `--podman` unpacks the next release's
//! Podman, conmon and runc with all they need, too: `PINTLE_PODMAN_ROOT=target/newer/podman` makes the
//! Podman tests use them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::sh;

/// Debian's releases in order.
const RELEASES: &[&str] = &["bookworm", "trixie", "forky", "duke"];
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What is fetched with everything it depends on, and what is fetched alone.
const WHOLE: &[&str] = &["criu"];
const ALONE: &[&str] = &["user-mode-linux"];
/// A tree in which Podman's tests run: what they start beside Podman is in it, too.
const PODMAN: &[&str] = &[
    "podman",
    "conmon",
    "runc",
    "catatonit",
    "criu",
    "iptables",
    "systemd",
    "bash",
    "dash",
    "coreutils",
    "grep",
    "perl",
    "procps",
    "tar",
    "gzip",
    "util-linux",
];

pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    let again = args.iter().any(|a| a == "--again");
    if again {
        let _ = fs::remove_dir_all(directory());
    }
    println!("{}", ensure()?.display());
    if args.iter().any(|a| a == "--podman") {
        println!("{}", podman()?.display());
    }
    Ok(())
}

/// Where everything lies.
pub(crate) fn directory() -> PathBuf {
    sh::target().join("newer")
}

/// Unpacks what is not there yet and returns the directory.
///
/// # Errors
/// Where the host is not Debian, its mirror has no newer release, or the packages do not work here.
pub(crate) fn ensure() -> Result<PathBuf> {
    let dir = directory();
    if dir.join("criu").is_file() && dir.join("root/usr/bin/linux.uml").is_file() {
        return Ok(dir);
    }
    let (mirror, next) = source()?;
    let work = dir.join(format!("work{}", std::process::id()));
    let result = unpack(&work, &mirror, next);
    if result.is_ok() {
        for name in ["root", "criu"] {
            let old = dir.join(name);
            let _ = fs::remove_dir_all(&old);
            fs::rename(work.join(name), &old)
                .with_context(|| format!("move {} to {}", name, dir.display()))?;
        }
    }
    let _ = fs::remove_dir_all(&work);
    result?;
    let version = sh::output(Command::new(dir.join("criu")).arg("--version"))?;
    eprintln!("{next}: criu {}", version.lines().next().unwrap_or_default().trim());
    Ok(dir)
}

/// The tree with the next release's Podman, unpacked if it is not there yet.
fn podman() -> Result<PathBuf> {
    let root = directory().join("podman");
    if root.join("usr/bin/podman").is_file() {
        return Ok(root);
    }
    let (mirror, next) = source()?;
    let work = directory().join(format!("work{}", std::process::id()));
    let result = fetch(&work, &mirror, next, PODMAN, &[]).and_then(|()| {
        // An installation would make these links; criu looks for the names.
        for name in ["iptables-restore", "ip6tables-restore"] {
            std::os::unix::fs::symlink("xtables-nft-multi", work.join("root/usr/sbin").join(name))
                .with_context(|| format!("link {name}"))?;
        }
        Ok(())
    });
    let result = result.and_then(|()| fs::rename(work.join("root"), &root).context("move the tree"));
    let _ = fs::remove_dir_all(&work);
    result?;
    Ok(root)
}

/// The mirror and the release that follows the host's.
fn source() -> Result<(String, &'static str)> {
    let host = codename()?;
    let at = RELEASES.iter().position(|r| *r == host);
    let Some(next) = at.and_then(|i| RELEASES.get(i + 1)) else {
        bail!("no release of Debian is known to follow {host}");
    };
    Ok((mirror(&host)?, next))
}

/// The host's release, from os-release.
fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let name = text.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"').to_string())
}

/// The mirror from which the host gets that release.
fn mirror(release: &str) -> Result<String> {
    let list = sh::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let found = list.lines().find_map(|l| {
        let mut fields = l.split('|');
        let uri = fields.next()?;
        (fields.next()? == release && fields.next()? == "main").then(|| uri.to_string())
    });
    found.with_context(|| format!("apt has no source for {release}"))
}

/// Unpacks packages with all they depend on, and some alone, into `work/root`.
fn fetch(work: &Path, mirror: &str, release: &str, whole: &[&str], alone: &[&str]) -> Result<()> {
    let (apt, root) = (work.join("apt"), work.join("root"));
    for d in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(d)).with_context(|| format!("create {}", apt.join(d).display()))?;
    }
    fs::create_dir_all(&root)?;
    fs::write(apt.join("list"), format!("deb [signed-by={KEYS}] {mirror} {release} main\n"))?;
    call(&apt, &apt, &["update"])?;
    let install = ["-y", "--no-install-recommends", "--download-only", "install"];
    call(&apt, &apt, &[&install, whole].concat())?;
    // Where apt puts what it is only to download: the directory it runs in.
    let archives = apt.join("cache/archives");
    if !alone.is_empty() {
        call(&apt, &archives, &[&["download"], alone].concat())?;
    }
    let mut count = 0;
    for entry in fs::read_dir(&archives)?.flatten() {
        if entry.path().extension().is_some_and(|e| e == "deb") {
            sh::output(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&root))?;
            count += 1;
        }
    }
    eprintln!("{release}: {count} packages unpacked");
    fs::remove_dir_all(&apt).context("remove the packages")
}

fn unpack(work: &Path, mirror: &str, release: &str) -> Result<()> {
    fetch(work, mirror, release, WHOLE, ALONE)?;
    let lib = directory().join("root/usr/lib");
    let loader = "$lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
    let text = format!(
        "#!/bin/sh\nlib='{}'\nexec \"{loader}\" --library-path \"$lib/x86_64-linux-gnu\" \
         \"$lib/../sbin/criu\" \"$@\"\n",
        lib.display()
    );
    let script = work.join("criu");
    fs::write(&script, text)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, mode).context("make the script executable")
}

/// One call of apt with a state of its own, tried three times.
fn call(apt: &Path, cwd: &Path, args: &[&str]) -> Result<()> {
    let mut last = String::new();
    for attempt in 1..=3u64 {
        let mut c = Command::new("apt-get");
        let option = |c: &mut Command, name: &str, value: &Path| {
            c.arg("-o").arg(format!("{name}={}", value.display()));
        };
        option(&mut c, "Dir::Etc::sourcelist", &apt.join("list"));
        option(&mut c, "Dir::Etc::sourceparts", Path::new("-"));
        option(&mut c, "Dir::State::lists", &apt.join("lists"));
        option(&mut c, "Dir::State::status", Path::new("/dev/null"));
        option(&mut c, "Dir::Cache", &apt.join("cache"));
        option(&mut c, "Dir::Log", apt);
        c.args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]);
        c.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        c.args(["-o", "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false"]);
        c.args(["-o", "Acquire::Languages=none"]).args(args).current_dir(cwd).env("LC_ALL", "C");
        let out = sh::capture(&mut c, Duration::from_secs(300))?;
        if out.status.is_some_and(|s| s.success()) {
            return Ok(());
        }
        last = sh::tail(&out.output, 15);
        std::thread::sleep(Duration::from_secs(3 * attempt));
    }
    bail!("apt-get {}:\n{last}", args.join(" "))
}
