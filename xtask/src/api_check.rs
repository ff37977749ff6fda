//! Every row of `docs/runtime-api.md` names a Rust item and a test that exist.
//!
//! Items are found by a reading of the client crate's sources that knows just enough of Rust: which
//! `impl`, `trait`, `struct` or `enum` a line stands in. rustfmt's layout makes that reliable.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Named items of the package that the table is about.
const ITEMS: usize = 183;
const TABLE: &str = "docs/runtime-api.md";
const SOURCES: &str = "crates/client/src/oci";
const TESTS: &str = "tests/tests";

/// Checks the table.
///
/// # Errors
/// With everything that is missing.
pub(crate) fn run(root: &Path) -> Result<()> {
    let table = fs::read_to_string(root.join(TABLE)).with_context(|| format!("read {TABLE}"))?;
    let mut known = BTreeSet::new();
    let mut tests = BTreeSet::new();
    for file in rust_files(&root.join(SOURCES))? {
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let module = module_of(&file.strip_prefix(root.join("crates/client/src"))?.with_extension(""));
        collect_items(&text, &module, &mut known);
        let module = if module.ends_with("::tests") { module } else { format!("{module}::tests") };
        collect_tests(&text, &module, &mut tests);
    }
    for file in rust_files(&root.join(TESTS))? {
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let module = module_of(&file.strip_prefix(root.join(TESTS))?.with_extension(""));
        collect_tests(&text, module.trim_end_matches("::main"), &mut tests);
    }
    let problems = check(&table, &known, &tests);
    if !problems.is_empty() {
        bail!("{TABLE}:\n  {}", problems.join("\n  "));
    }
    println!("api-check: {ITEMS} items of {TABLE}, each with a Rust item and a test that exist");
    Ok(())
}

fn check(table: &str, known: &BTreeSet<String>, tests: &BTreeSet<String>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut items = BTreeSet::new();
    let mut added = false;
    for line in table.lines() {
        if line.starts_with("## Added") {
            added = true;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let code = |i: usize| cells.get(i).and_then(|c| c.strip_prefix('`')?.strip_suffix('`'));
        let Some(first) = code(1) else { continue };
        let (rust, test) = if added { (first, code(2)) } else { (code(2).unwrap_or_default(), code(3)) };
        let Some(test) = test else {
            // The last table is about no item.
            if !added {
                problems.push(format!("{first} has no test"));
            }
            continue;
        };
        if !added && !items.insert(first) {
            problems.push(format!("{first} has two rows"));
        }
        if !known.contains(rust) {
            problems.push(format!("{first}: no item {rust} in {SOURCES}"));
        }
        if !tests.contains(test) {
            problems.push(format!("{first}: no test {test}"));
        }
    }
    if items.len() != ITEMS {
        problems.push(format!("{} items instead of {ITEMS}", items.len()));
    }
    problems
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

fn module_of(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    parts.join("::").trim_end_matches("::mod").to_owned()
}

/// The name at the beginning of a text.
fn name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn without_visibility(line: &str) -> &str {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    ["async ", "const fn "].iter().fold(line, |line, word| match *word {
        "const fn " => line,
        word => line.strip_prefix(word).unwrap_or(line),
    })
}

/// `impl<T> Trait for Type<T> {` and the like: the type.
fn impl_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("impl")?;
    let rest = match rest.strip_prefix('<') {
        Some(generics) => &generics[generics.find('>')? + 1..],
        None => rest,
    };
    let rest = rest.trim_start();
    let of = rest.split(" for ").last()?;
    Some(name(of.rsplit("::").next().unwrap_or(of)))
}

fn collect_items(text: &str, module: &str, known: &mut BTreeSet<String>) {
    let mut current: Option<(String, bool)> = None;
    let short = module.rsplit("::").next().unwrap_or_default();
    for line in text.lines() {
        if !line.starts_with(' ') {
            let item = without_visibility(line);
            if let Some(of) = impl_type(line) {
                current = Some((of.to_owned(), false));
            } else if line.starts_with('}') {
                current = None;
            }
            for word in ["struct ", "enum ", "trait ", "const ", "type ", "fn "] {
                let Some(rest) = item.strip_prefix(word).filter(|_| line.starts_with("pub ")) else {
                    continue;
                };
                let declared = name(rest);
                known.insert(declared.to_owned());
                known.insert(format!("{short}::{declared}"));
                if line.ends_with('{') && word != "fn " {
                    current = Some((declared.to_owned(), word == "enum "));
                }
            }
            continue;
        }
        let Some((of, is_enum)) = &current else { continue };
        let Some(inner) = line.strip_prefix("    ").filter(|l| !l.starts_with(' ')) else { continue };
        let item = without_visibility(inner);
        if let Some(rest) = item.strip_prefix("fn ") {
            known.insert(format!("{of}::{}", name(rest)));
        } else if inner.starts_with("pub ") || (*is_enum && inner.starts_with(char::is_uppercase)) {
            known.insert(format!("{of}::{}", name(item)));
        }
    }
}

fn collect_tests(text: &str, module: &str, tests: &mut BTreeSet<String>) {
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(rest) = without_visibility(line).strip_prefix("fn ").filter(|_| marked) {
            tests.insert(format!("{module}::{}", name(rest)));
            marked = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_and_tests_are_found_and_missed() {
        let text = "pub struct Alpha {\n    pub field: u8,\n    hidden: u8,\n}\nimpl Alpha {\n    pub async fn go(&self) {\n    }\n}\n\
            pub enum Beta {\n    One,\n}\npub const GAMMA: u8 = 1;\nimpl std::fmt::Display for Alpha {\n    fn fmt(&self) {}\n}\n\
            #[test]\nfn shows() {}\n";
        let (mut known, mut tests) = (BTreeSet::new(), BTreeSet::new());
        collect_items(text, "oci::file", &mut known);
        collect_tests(text, "oci::file::tests", &mut tests);
        for item in ["Alpha", "Alpha::field", "Alpha::go", "Beta::One", "GAMMA", "Alpha::fmt"] {
            assert!(known.contains(item), "{item} in {known:?}");
        }
        assert!(!known.contains("Alpha::hidden"));
        assert!(tests.contains("oci::file::tests::shows"));
        let row = "| `A` | `Alpha::go` | `oci::file::tests::shows` | |\n| `B` | `Alpha::no` | `x` | |";
        let problems = check(row, &known, &tests);
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
