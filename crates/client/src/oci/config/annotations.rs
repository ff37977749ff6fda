//! Annotations that a handler or a workload may allow.

use super::super::error::{Error, Result};
use std::collections::BTreeMap;

/// Every annotation that can be allowed. Those at the end are handed to the runtime.
pub const ALLOWABLE_ANNOTATIONS: [&str; 26] = [
    "io.kubernetes.cri-o.userns-mode",
    "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw",
    "io.kubernetes.cri-o.UnifiedCgroup",
    "io.kubernetes.cri-o.ShmSize",
    "io.kubernetes.cri-o.Devices",
    "cpu-load-balancing.crio.io",
    "cpu-quota.crio.io",
    "irq-load-balancing.crio.io",
    "io.containers.trace-syscall",
    "io.kubernetes.cri.rdt-class",
    "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel",
    "cpu-c-states.crio.io",
    "cpu-freq-governor.crio.io",
    "io.kubernetes.cri-o.seccompNotifierAction",
    "io.kubernetes.cri-o.umask",
    "io.kubernetes.cri-o.PodLinuxOverhead",
    "io.kubernetes.cri-o.PodLinuxResources",
    "io.kubernetes.cri-o.LinkLogs",
    "cpu-shared.crio.io",
    "seccomp-profile.kubernetes.cri-o.io",
    "io.kubernetes.cri-o.DisableFIPS",
    "bundle",
    "org.systemd.property.",
    "org.criu.config",
    "module.wasm.image/variant",
    "run.oci.",
];

/// The annotations that are not allowed, given those that are. One listed twice is fine.
///
/// # Errors
/// If the list holds a text that is no annotation of [`ALLOWABLE_ANNOTATIONS`].
pub fn disallowed_annotations(allowed: &[String]) -> Result<Vec<&'static str>> {
    if let Some(unknown) = allowed.iter().find(|a| !ALLOWABLE_ANNOTATIONS.contains(&a.as_str())) {
        return Err(Error::Config(format!("invalid allowed_annotation: {unknown}")));
    }
    let disallowed = |a: &&str| !allowed.iter().any(|allowed| allowed == a);
    Ok(ALLOWABLE_ANNOTATIONS.into_iter().filter(disallowed).collect())
}

/// Removes every annotation whose key begins with one that is not allowed.
pub fn filter_annotations(annotations: &mut BTreeMap<String, String>, disallowed: &[&str]) {
    annotations.retain(|key, _| !disallowed.iter().any(|prefix| key.starts_with(prefix)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_complement() {
        let allowed = ["run.oci.".to_owned(), "bundle".to_owned(), "bundle".to_owned()];
        let disallowed = disallowed_annotations(&allowed).unwrap();
        assert_eq!(disallowed.len(), ALLOWABLE_ANNOTATIONS.len() - 2);
        let mut annotations: BTreeMap<String, String> =
            ["run.oci.x", "org.systemd.property.a", "mine"].map(|k| (k.to_owned(), String::new())).into();
        filter_annotations(&mut annotations, &disallowed);
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["mine", "run.oci.x"]);
        let error = disallowed_annotations(&["x".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "invalid allowed_annotation: x");
    }
}
