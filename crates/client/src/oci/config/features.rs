//! What a runtime says it can do.

use super::super::error::{Error, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::utsname::uname,
};
use serde::Deserialize;
use std::{path::Path, process::Command, sync::OnceLock};

/// The features document of an OCI runtime, as far as it is used here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Features {
    /// Oldest version of the specification it takes.
    pub oci_version_min: String,
    /// Newest version of the specification it takes.
    pub oci_version_max: String,
    /// Mount options it knows.
    pub mount_options: Vec<String>,
    /// What only Linux has.
    pub linux: Option<LinuxFeatures>,
}

/// The Linux section of a features document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinuxFeatures {
    /// Extensions of mounts.
    pub mount_extensions: Option<MountExtensions>,
}

/// Extensions of mounts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct MountExtensions {
    /// Mounts with mapped ids.
    pub idmap: Option<Extension>,
}

/// An extension that may be there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Extension {
    /// It is there.
    pub enabled: Option<bool>,
}

impl Features {
    /// Reads a features document.
    ///
    /// # Errors
    /// If it is not JSON, or does not say which versions of the specification it is about.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let features: Self = serde_json::from_slice(text)
            .map_err(|e| Error::Json(e).context("unable to unmarshal features structure"))?;
        if features.oci_version_min.is_empty() || features.oci_version_max.is_empty() {
            return Err(Error::Config("runtime features structure is not valid".into()));
        }
        Ok(features)
    }

    /// Asks a runtime for its features: `<path> features`, standard output alone.
    ///
    /// # Errors
    /// If it cannot be run, fails, or as [`parse`](Self::parse).
    pub fn of_runtime(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { what: "running", path: path.to_path_buf(), source };
        let output = Command::new(path).arg("features").output().map_err(failed)?;
        if !output.status.success() {
            return Err(Error::Config(format!("{} features: {}", path.display(), output.status)));
        }
        Self::parse(&output.stdout)
    }

    /// Whether it can mount with mapped ids.
    pub fn id_map(&self) -> bool {
        let extensions = self.linux.as_ref().and_then(|l| l.mount_extensions.as_ref());
        extensions.and_then(|m| m.idmap.as_ref()).and_then(|i| i.enabled) == Some(true)
    }

    /// Whether it and this kernel can make mounts recursively read-only.
    pub fn rro_mounts(&self) -> bool {
        self.mount_options.iter().any(|option| option == "rro") && kernel_has_rro()
    }
}

/// Whether this kernel can make mounts recursively read-only. Found out once.
fn kernel_has_rro() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let release = uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
        release_has_rro(&release) || trial().unwrap_or(false)
    })
}

fn release_has_rro(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= (5, 12),
        _ => false,
    }
}

/// An older kernel may have the call all the same: it is tried on a mount made for it.
fn trial() -> std::io::Result<bool> {
    let dir = std::env::temp_dir().join(format!("pintle-rro-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let none = None::<&str>;
    let result = mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), none).map(|()| {
        let works = pintle_sys::mount::set_readonly_recursively(&dir).is_ok();
        let _ = umount2(&dir, MntFlags::MNT_DETACH);
        works
    });
    std::fs::remove_dir(&dir)?;
    Ok(result?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["ro","rro"],
        "linux":{"mountExtensions":{"idmap":{"enabled":true}}},"more":1}"#;

    #[test]
    fn features_document() {
        let features = Features::parse(DOCUMENT.as_bytes()).unwrap();
        assert!(features.id_map());
        assert_eq!(features.rro_mounts(), kernel_has_rro());
    }

    #[test]
    fn features_absent_at_any_level() {
        for linux in ["null", "{}", r#"{"mountExtensions":{}}"#, r#"{"mountExtensions":{"idmap":{}}}"#] {
            let text = format!(r#"{{"ociVersionMin":"1","ociVersionMax":"1","linux":{linux}}}"#);
            let features = Features::parse(text.as_bytes()).unwrap();
            assert!(!features.id_map() && !features.rro_mounts());
        }
    }

    #[test]
    fn features_that_are_none() {
        let error = Features::parse(b"{}").unwrap_err();
        assert_eq!(error.to_string(), "runtime features structure is not valid");
        let error = Features::parse(b"usage: ...").unwrap_err();
        assert!(error.to_string().starts_with("unable to unmarshal features structure: "));
        assert!(Features::of_runtime(Path::new("/nowhere")).is_err());
        assert!(Features::of_runtime(Path::new("/bin/false")).is_err());
    }

    #[test]
    fn features_kernel_releases() {
        for (release, has) in
            [("5.12.0", true), ("5.11.9-x", false), ("6.1", true), ("4.18.0-348", false), ("", false)]
        {
            assert_eq!(release_has_rro(release), has, "{release}");
        }
    }
}
