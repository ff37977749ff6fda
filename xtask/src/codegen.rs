//! Generates the Rust code of the protocols into `crates/proto/src`; no protoc is needed.
//!
//! The code is committed, so that reviews and documentation see it; `--check` compares instead of writing.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

/// The protocols: folder below `/proto`, files in it, module below `crates/proto/src`, and whether the messages do
/// without reflection (containerd's are many, and every shim carries them).
const PROTOCOLS: &[(&str, &[&str], &str, bool)] = &[
    ("pintle/monitor/v1", &["monitor.proto"], "monitor", false),
    (
        "containerd",
        &[
            "bootstrap.proto",
            "events.proto",
            "linux_runc.proto",
            "metrics_v1.proto",
            "metrics_v2.proto",
            "runc_options.proto",
            "runtime_info.proto",
            "runtime_options.proto",
            "task.proto",
            "task_events.proto",
        ],
        "containerd",
        true,
    ),
];

/// Generates all, or compares with what is committed.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let mut stale = Vec::new();
    for (folder, files, module, lite) in PROTOCOLS {
        let out = root.join("target/codegen").join(module);
        let _ = fs::remove_dir_all(&out);
        fs::create_dir_all(&out)?;
        let include = root.join("proto");
        Codegen::new()
            .out_dir(&out)
            .inputs(files.iter().map(|f| include.join(folder).join(f)))
            .include(&include)
            .rust_protobuf()
            .customize(Customize { async_all: true, ..Default::default() })
            .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false).lite_runtime(*lite))
            .run()
            .with_context(|| format!("generate code of proto/{folder}"))?;
        let target = root.join("crates/proto/src").join(module);
        fs::create_dir_all(&target)?;
        for entry in fs::read_dir(&out)? {
            let path = entry?.path();
            let name = path.file_name().context("generated file has no name")?;
            if name == "mod.rs" {
                continue;
            }
            let text = tidy(&fs::read_to_string(&path)?);
            let committed = target.join(name);
            if fs::read_to_string(&committed).ok().as_deref() == Some(&text) {
                continue;
            }
            if check {
                stale.push(committed.display().to_string());
            } else {
                fs::write(&committed, text)?;
            }
        }
    }
    if !stale.is_empty() {
        bail!("generated code is stale, run `cargo xtask codegen`: {}", stale.join(", "));
    }
    Ok(())
}

/// Takes trailing blanks away, so that the file passes `git diff --check`.
fn tidy(text: &str) -> String {
    let mut out: String = text.lines().map(|l| l.trim_end().to_owned() + "\n").collect();
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}
