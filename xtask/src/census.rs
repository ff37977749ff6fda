//! What a test program has left behind. Every id and directory of a test carries the pid of its program
//! (`pintle_tests::unique_id`), so what belongs to it is known by that.

use std::fs;
use std::path::Path;

/// Processes, mounts, cgroups, runtime state and files that carry the mark of the test program `pid`.
pub(crate) fn left(pid: u32) -> Vec<String> {
    let mark = Mark(format!("{pid}x"));
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc")) {
        if !entry.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let read = |name: &str| {
            let bytes = fs::read(format!("/proc/{entry}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let line = read("cmdline");
        if mark.is_in(&line) || mark.is_in(&read("cgroup")) {
            found.push(format!("process {entry} {line}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|l| mark.is_in(l)).map(|l| format!("mount {l}")));
    cgroups(Path::new("/sys/fs/cgroup"), 0, &mark, &mut found);
    let temporary = std::env::temp_dir();
    for dir in [&*temporary, Path::new("/run/runc"), Path::new("/run/crun"), Path::new("/run/pintle")] {
        let named = entries(dir).into_iter().filter(|name| mark.is_in(name));
        found.extend(named.map(|name| dir.join(name).display().to_string()));
    }
    found
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(dir) = fs::read_dir(dir) else { return Vec::new() };
    dir.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn cgroups(dir: &Path, depth: usize, mark: &Mark, found: &mut Vec<String>) {
    // Containers lie at most a few levels below; the trees of an engine are not walked to their end.
    if depth > 5 {
        return;
    }
    let Ok(dirs) = fs::read_dir(dir) else { return };
    for entry in dirs.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        if mark.is_in(&entry.file_name().to_string_lossy()) {
            found.push(format!("cgroup {}", entry.path().display()));
        } else {
            cgroups(&entry.path(), depth + 1, mark, found);
        }
    }
}

/// `PIDx`, as it stands in the names of one program's tests: `ptTAG`, the mark, a number, `z`.
struct Mark(String);

impl Mark {
    fn is_in(&self, text: &str) -> bool {
        text.match_indices(&self.0).any(|(at, mark)| {
            let rest = text[at + mark.len()..].trim_start_matches(|c: char| c.is_ascii_digit());
            let before = &text[..at];
            let tag = before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
            rest.starts_with('z') && tag.contains("pt") && !tag.ends_with(|c: char| c.is_ascii_digit())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Mark;

    #[test]
    fn names_of_one_program() {
        let mark = Mark("123x".into());
        for name in ["ptcli123x4z", "/tmp/ptsoak123x0z/ptn123x17z/run", "0::/libpod-ptn123x1z.scope"] {
            assert!(mark.is_in(name), "{name}");
        }
        for name in ["ptcli1123x4z", "123x4z", "ptcli123x4", "sleep 123x", "é123x1z", ""] {
            assert!(!mark.is_in(name), "{name}");
        }
    }
}
