//! Virtual volumes of Kata Containers, as they are handed over in a mount option.

use super::{consts::KATA_VIRTUAL_VOLUME_OPTION_NAME, state::HtmlSafe};
use serde::Serialize;
use std::collections::BTreeMap;

/// A volume that the guest makes by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct KataVirtualVolume {
    /// Kind, one of `direct_block`, `image_raw_block`, `layer_raw_block`, `image_nydus_block`,
    /// `layer_nydus_block`, `image_nydus_fs`, `layer_nydus_fs`, `image_guest_pull`.
    pub volume_type: String,
    /// What it is made from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Type of its file system.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fs_type: String,
    /// Mount options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// More about a directly assigned volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_volume: Option<VolumeMetadata>,
    /// More about an image that the guest pulls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull: Option<VolumeMetadata>,
    /// More about a Nydus image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nydus_image: Option<NydusImageVolume>,
    /// More about a verified block device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dm_verity: Option<DmVerity>,
}

/// Free metadata of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct VolumeMetadata {
    /// Keys and values.
    pub metadata: BTreeMap<String, String>,
}

/// A Nydus image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct NydusImageVolume {
    /// Its configuration.
    pub config: String,
    /// Directory of its snapshot.
    pub snapshot_dir: String,
}

/// How a block device is verified.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DmVerity {
    /// Hash algorithm.
    pub hashtype: String,
    /// Root hash.
    pub hash: String,
    /// Number of data blocks.
    pub blocknum: u64,
    /// Bytes of a data block.
    pub blocksize: u64,
    /// Bytes of a hash block.
    pub hashsize: u64,
    /// Offset of the hash tree.
    pub offset: u64,
}

const TYPES: [&str; 8] = [
    "direct_block",
    "image_raw_block",
    "layer_raw_block",
    "image_nydus_block",
    "layer_nydus_block",
    "image_nydus_fs",
    "layer_nydus_fs",
    "image_guest_pull",
];

impl KataVirtualVolume {
    /// The volume of an image that the guest pulls, with the annotations of the container.
    pub fn guest_pull(image: impl Into<String>, annotations: BTreeMap<String, String>) -> Self {
        Self {
            volume_type: "image_guest_pull".into(),
            source: image.into(),
            fs_type: "overlay_fs".into(),
            image_pull: Some(VolumeMetadata { metadata: annotations }),
            ..Default::default()
        }
    }

    /// Whether its type is one that Kata knows.
    pub fn is_valid(&self) -> bool {
        TYPES.contains(&self.volume_type.as_str())
    }

    /// Its JSON in standard base64 with padding.
    pub fn to_base64(&self) -> String {
        let mut json = Vec::new();
        let mut encoder = serde_json::Serializer::with_formatter(&mut json, HtmlSafe);
        // Writing strings and numbers to memory cannot fail.
        if self.serialize(&mut encoder).is_err() {
            json.clear();
        }
        base64(&json)
    }

    /// The mount option that carries it.
    pub fn mount_option(&self) -> String {
        format!("{KATA_VIRTUAL_VOLUME_OPTION_NAME}={}", self.to_base64())
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let sextet = word >> (18 - 6 * i) & 0x3f;
            let filled = i <= chunk.len();
            out.push(if filled { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kata_base64_vectors() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("a>b?", "YT5iPw=="),
        ];
        for (plain, encoded) in vectors {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn kata_guest_pull_volume_bytes() {
        let volume = KataVirtualVolume::guest_pull("i", BTreeMap::from([("a".into(), "<".into())]));
        assert!(volume.is_valid());
        let json = "{\"volume_type\":\"image_guest_pull\",\"source\":\"i\",\"fs_type\":\"overlay_fs\",\
            \"image_pull\":{\"metadata\":{\"a\":\"\\u003c\"}}}";
        assert_eq!(volume.to_base64(), base64(json.as_bytes()));
        assert!(volume.mount_option().starts_with("io.katacontainers.volume=eyJ2b2x1bWVfdHlwZSI6"));
        assert!(!KataVirtualVolume::default().is_valid());
        assert_eq!(KataVirtualVolume::default().to_base64(), base64(b"{\"volume_type\":\"\"}"));
    }
}
