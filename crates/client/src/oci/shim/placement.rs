//! Where a shim stands among the cgroups.

use crate::oci::{
    CgroupManager, Config, Container, Error, INFRA_CONTAINER_NAME, Result, RuntimeHandler,
    config::WorkloadResources, stats::Hierarchies,
};
use std::path::{Path, PathBuf};

/// What is to be made for a shim before it runs anything.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    /// cgroup below the mounts of the hierarchies; empty: none.
    path: PathBuf,
    /// Scope and slice for systemd.
    scope: Option<(String, String)>,
    cpu: WorkloadResources,
}

/// Where the shim of a container belongs.
pub(super) fn plan(
    config: &Config,
    handler: &RuntimeHandler,
    container: &Container,
    cgroup_parent: &str,
) -> Result<Placement> {
    let mut placement = Placement { cpu: cpu_settings(config, handler, container), ..Default::default() };
    let wanted = handler.monitor_cgroup.as_str();
    match config.cgroup_manager {
        CgroupManager::Cgroupfs => {
            if !matches!(wanted, "" | "pod") {
                return Err(Error::Config(format!("conmon cgroup {wanted} invalid for cgroupfs")));
            }
            if !cgroup_parent.is_empty() {
                let parent = Path::new(cgroup_parent.trim_start_matches('/'));
                placement.path = parent.join(format!("crio-conmon-{}", container.id()));
            }
        }
        CgroupManager::Systemd => {
            let slice = if wanted.ends_with(".slice") { wanted } else { cgroup_parent };
            if !slice.is_empty() {
                let scope = format!("crio-conmon-{}.scope", container.id());
                placement.scope = Some((scope, slice.to_owned()));
            }
        }
    }
    Ok(placement)
}

/// CPU settings of the shim: those of the infra CPUs, overridden by the pod's workload.
fn cpu_settings(config: &Config, handler: &RuntimeHandler, container: &Container) -> WorkloadResources {
    let mut cpu = WorkloadResources::default();
    if handler.monitor_cgroup == "pod" {
        cpu.cpuset.clone_from(&config.infra_ctr_cpuset);
    }
    let annotations = container.annotations();
    let workload = config
        .workloads
        .values()
        .find(|w| !w.activation_annotation.is_empty() && annotations.contains_key(&w.activation_annotation));
    let Some(workload) = workload else { return cpu };
    let key = format!("{}/{INFRA_CONTAINER_NAME}", workload.annotation_prefix);
    let own: Option<WorkloadResources> = annotations.get(&key).and_then(|t| serde_json::from_str(t).ok());
    for settings in std::iter::once(&workload.resources).chain(own.as_ref()) {
        if settings.cpushares != 0 {
            cpu.cpushares = settings.cpushares;
        }
        if settings.cpuquota != 0 {
            cpu.cpuquota = settings.cpuquota;
        }
        if settings.cpuperiod != 0 {
            cpu.cpuperiod = settings.cpuperiod;
        }
        if !settings.cpuset.is_empty() {
            cpu.cpuset.clone_from(&settings.cpuset);
        }
    }
    cpu
}

impl Placement {
    /// Makes the cgroups; gives their directories.
    pub(super) fn make(&self) -> Result<Vec<PathBuf>> {
        self.make_in(&Hierarchies::of_system())
    }

    fn make_in(&self, hierarchies: &Hierarchies) -> Result<Vec<PathBuf>> {
        if self.path.as_os_str().is_empty() {
            return Ok(Vec::new());
        }
        let dirs = hierarchies.directories(&["memory", "cpu", "pids"], &self.path);
        for dir in &dirs {
            let made = std::fs::create_dir_all(dir).and_then(|()| self.set_cpu(hierarchies, dir));
            if let Err(source) = made {
                remove(&dirs);
                return Err(Error::Io { what: "making monitor cgroup", path: dir.clone(), source });
            }
        }
        Ok(dirs)
    }

    fn set_cpu(&self, hierarchies: &Hierarchies, dir: &Path) -> std::io::Result<()> {
        let set = |file: &str, text: String| {
            let path = dir.join(file);
            if path.exists() { std::fs::write(path, text) } else { Ok(()) }
        };
        let cpu = &self.cpu;
        if hierarchies.is_unified() {
            if cpu.cpushares != 0 {
                // The kernel's own mapping of shares (2 to 262144) to weights (1 to 10000).
                let weight = 1 + (cpu.cpushares.clamp(2, 262_144) - 2) * 9999 / 262_142;
                set("cpu.weight", weight.to_string())?;
            }
            if cpu.cpuquota > 0 {
                let period = if cpu.cpuperiod == 0 { 100_000 } else { cpu.cpuperiod };
                set("cpu.max", format!("{} {period}", cpu.cpuquota))?;
            }
            if !cpu.cpuset.is_empty() {
                set("cpuset.cpus", cpu.cpuset.clone())?;
            }
            return Ok(());
        }
        if cpu.cpushares != 0 {
            set("cpu.shares", cpu.cpushares.to_string())?;
        }
        if cpu.cpuperiod != 0 {
            set("cpu.cfs_period_us", cpu.cpuperiod.to_string())?;
        }
        if cpu.cpuquota != 0 {
            set("cpu.cfs_quota_us", cpu.cpuquota.to_string())?;
        }
        Ok(())
    }

    /// Has systemd put the shim into a scope of its own.
    pub(super) async fn hand_to_systemd(&self, pid: i32) -> Result<()> {
        let Some((scope, slice)) = &self.scope else { return Ok(()) };
        let mut command = std::process::Command::new("busctl");
        command.args(self.scope_call(scope, slice, pid));
        let failed = |text: String| Error::Config(format!("making scope {scope} for the monitor: {text}"));
        let output = super::orphan::run(command).await.map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// Arguments of `busctl` for a transient scope around the shim.
    fn scope_call(&self, scope: &str, slice: &str, pid: i32) -> Vec<String> {
        const SIGPIPE: &str = "13";
        let mut properties: Vec<Vec<String>> = [
            vec!["PIDs", "au", "1", &pid.to_string()],
            vec!["Slice", "s", slice],
            vec!["Delegate", "b", "true"],
            vec!["DefaultDependencies", "b", "false"],
            // The shim ignores it, so that a shutdown does not end it before its container.
            vec!["KillSignal", "i", SIGPIPE],
        ]
        .into_iter()
        .map(|property| property.into_iter().map(str::to_owned).collect())
        .collect();
        let mut number = |name: &str, value: u64| {
            if value != 0 {
                properties.push(vec![name.into(), "t".into(), value.to_string()]);
            }
        };
        number("CPUShares", self.cpu.cpushares);
        let quota = u64::try_from(self.cpu.cpuquota).unwrap_or(0);
        let period = if self.cpu.cpuperiod == 0 { 100_000 } else { self.cpu.cpuperiod };
        number("CPUQuotaPerSecUSec", quota.saturating_mul(1_000_000) / period);
        number("CPUQuotaPeriodUSec", if quota == 0 { 0 } else { period });
        if let Some(mask) = cpu_mask(&self.cpu.cpuset) {
            let mut property = vec!["AllowedCPUs".to_owned(), "ay".into(), mask.len().to_string()];
            property.extend(mask.iter().map(u8::to_string));
            properties.push(property);
        }
        let mut call: Vec<String> = [
            "--system",
            "call",
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
            "StartTransientUnit",
            "ssa(sv)a(sa(sv))",
            scope,
            "replace",
        ]
        .map(str::to_owned)
        .into();
        call.push(properties.len().to_string());
        call.extend(properties.into_iter().flatten());
        call.push("0".into());
        call
    }
}

/// The bits of a CPU list such as `0-2,5`.
fn cpu_mask(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for part in list.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= 8192 {
            return None;
        }
        for cpu in first..=last {
            if mask.len() <= cpu / 8 {
                mask.resize(cpu / 8 + 1, 0);
            }
            mask[cpu / 8] |= 1 << (cpu % 8);
        }
    }
    (!mask.is_empty()).then_some(mask)
}

/// Removes cgroups that were made for a shim that did not start.
pub(super) fn remove(dirs: &[PathBuf]) {
    for dir in dirs {
        let _ = std::fs::remove_dir(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn container() -> Container {
        Container::builder("c1", "name")
            .annotations(BTreeMap::from([
                ("target/management".to_owned(), String::new()),
                ("resources/POD".to_owned(), r#"{"cpushares":20}"#.to_owned()),
            ]))
            .build()
    }

    fn config(manager: CgroupManager) -> Config {
        let mut config =
            Config { cgroup_manager: manager, infra_ctr_cpuset: "0-1,9".into(), ..Default::default() };
        let workload = crate::oci::config::Workload {
            activation_annotation: "target/management".into(),
            annotation_prefix: "resources".into(),
            resources: WorkloadResources { cpuquota: 50_000, ..Default::default() },
            ..Default::default()
        };
        config.workloads.insert("management".into(), workload);
        config
    }

    fn handler(cgroup: &str) -> RuntimeHandler {
        RuntimeHandler { monitor_cgroup: cgroup.into(), ..Default::default() }
    }

    #[test]
    fn placement_by_cgroupfs() {
        let config = config(CgroupManager::Cgroupfs);
        let error = plan(&config, &handler("system.slice"), &container(), "/p").unwrap_err();
        assert_eq!(error.to_string(), "conmon cgroup system.slice invalid for cgroupfs");
        let placement = plan(&config, &handler("pod"), &container(), "/pods/p").unwrap();
        assert_eq!(placement.path, Path::new("pods/p/crio-conmon-c1"));
        let cpu = &placement.cpu;
        assert_eq!((cpu.cpushares, cpu.cpuquota, cpu.cpuset.as_str()), (20, 50_000, "0-1,9"));
        assert_eq!(
            plan(&config, &handler(""), &container(), "").unwrap().make().unwrap(),
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn placement_by_systemd() {
        let config = config(CgroupManager::Systemd);
        let placement = plan(&config, &handler("pod"), &container(), "kubepods.slice").unwrap();
        let (scope, slice) = placement.scope.clone().unwrap();
        assert_eq!((scope.as_str(), slice.as_str()), ("crio-conmon-c1.scope", "kubepods.slice"));
        let call = placement.scope_call(&scope, &slice, 42).join(" ");
        let end = "StartTransientUnit ssa(sv)a(sa(sv)) crio-conmon-c1.scope replace 9 PIDs au 1 42 \
            Slice s kubepods.slice Delegate b true DefaultDependencies b false KillSignal i 13 CPUShares t 20 \
            CPUQuotaPerSecUSec t 500000 CPUQuotaPeriodUSec t 100000 AllowedCPUs ay 2 3 2 0";
        assert!(call.ends_with(end), "{call}");
        let placement = plan(&config, &handler("system.slice"), &container(), "x.slice").unwrap();
        assert_eq!(placement.scope.unwrap().1, "system.slice");
        assert!(placement.cpu.cpuset.is_empty(), "infra CPUs are for monitors in a pod's cgroup");
    }

    #[test]
    fn placement_cpu_masks() {
        assert_eq!(cpu_mask("0-1,9"), Some(vec![3, 2]));
        assert_eq!(cpu_mask(""), None);
        assert_eq!(cpu_mask("x"), None);
        assert_eq!(cpu_mask("0-999999999"), None);
    }
}
