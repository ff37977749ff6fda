//! `docs/SPECIFICATION.md` promises; this checks that every promise names a proof and every proof exists.
//!
//! A promise is a row of a table whose first cell is a number such as `G1` or `L2`; its last cell names
//! the proofs in backticks: `target::test`, where `target` is a file of `tests/tests` or a crate
//! (`core::log::cri::tests::name`), or a task such as `xtask bench memory`. A row `F1` has its constants with
//! their values in the cell before that.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

const SPECIFICATION: &str = "docs/SPECIFICATION.md";
/// As many guarantees there are.
const GUARANTEES: u32 = 25;

pub(crate) fn run(_args: Vec<OsString>) -> Result<()> {
    let text = fs::read_to_string(SPECIFICATION).with_context(|| format!("read {SPECIFICATION}"))?;
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for row in promises(&text) {
        if !seen.insert(row.number) {
            wrong.push(format!("{} stands there twice", row.number));
        }
        if row.proofs.is_empty() {
            wrong.push(format!("{} names no proof", row.number));
        }
        if row.figures.is_empty() && row.number.starts_with('F') {
            wrong.push(format!("{} names no constant", row.number));
        }
        let checked = row.figures.into_iter().map(figure).chain(row.proofs.into_iter().map(exists));
        wrong.extend(checked.filter_map(Result::err).map(|e| format!("{}: {e:#}", row.number)));
    }
    for n in 1..=GUARANTEES {
        if !seen.contains(format!("G{n}").as_str()) {
            wrong.push(format!("G{n} is missing"));
        }
    }
    if !wrong.is_empty() {
        bail!("{SPECIFICATION}:\n{}", wrong.join("\n"));
    }
    let figures = seen.iter().filter(|n| n.starts_with('F')).count();
    println!(
        "{} promises, each with a proof that exists; {figures} rows of figures that are true, each with a test",
        seen.len() - figures
    );
    Ok(())
}

struct Promise<'a> {
    number: &'a str,
    /// Only of a row of figures.
    figures: Vec<&'a str>,
    proofs: Vec<&'a str>,
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn promises(text: &str) -> Vec<Promise<'_>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let Some(number) = cells.first() else { continue };
        let digits = number.trim_start_matches(|c: char| c.is_ascii_uppercase());
        let one_letter = number.len() == digits.len() + 1;
        if !line.starts_with('|') || !one_letter || digits.parse::<u32>().is_err() || cells.len() < 3 {
            continue;
        }
        // By place, so that a cell that is missing is not taken for another.
        let (figures, proof) = if number.starts_with('F') { (cells.get(3), 4) } else { (None, 2) };
        found.push(Promise {
            number,
            figures: figures.map(|cell| quoted(cell)).unwrap_or_default(),
            proofs: cells.get(proof).map(|cell| quoted(cell)).unwrap_or_default(),
        });
    }
    found
}

/// Whether a constant has the value that is written: `shim/src/file.rs: NAME = VALUE`.
fn figure(text: &str) -> Result<()> {
    let (Some((file, rest)), Some((_, value))) = (text.split_once(": "), text.split_once(" = ")) else {
        bail!("`{text}` is not file: NAME = value")
    };
    let name = rest.split(" = ").next().unwrap_or_default();
    let source =
        fs::read_to_string(Path::new("crates").join(file)).with_context(|| format!("read {file}"))?;
    let begin = format!("const {name}: ");
    let line = source.lines().find(|line| line.contains(&begin));
    let line = line.with_context(|| format!("{file} has no constant {name}"))?;
    match line.split_once(" = ").map(|(_, has)| has.trim_end_matches(';')) {
        Some(has) if has == value => Ok(()),
        has => bail!("{name} is {} in {file}, not {value}", has.unwrap_or("something else")),
    }
}

/// Whether the proof is there.
fn exists(proof: &str) -> Result<()> {
    if let Some(task) = proof.strip_prefix("xtask ") {
        let task = task.split(' ').next().unwrap_or_default();
        let main = fs::read_to_string("xtask/src/main.rs")?;
        if main.contains(&format!("\"{task}\" =>")) {
            return Ok(());
        }
        bail!("there is no task {task}");
    }
    let (Some((target, _)), Some((_, test))) = (proof.split_once("::"), proof.rsplit_once("::")) else {
        bail!("`{proof}` is not target::test")
    };
    let end_to_end = Path::new("tests/tests");
    let places =
        [end_to_end.join(format!("{target}.rs")), end_to_end.join(target), Path::new("crates").join(target)];
    let Some(place) = places.iter().find(|p| p.exists()) else {
        bail!("`{proof}`: there is neither tests/tests/{target}.rs nor crates/{target}");
    };
    for place in places.iter().filter(|p| p.exists()) {
        if has_test(place, test)? {
            return Ok(());
        }
    }
    bail!("`{proof}`: {} has no test {test}", place.display())
}

/// Whether a file, or a file below a directory, has a function of this name that is a test.
fn has_test(place: &Path, test: &str) -> Result<bool> {
    if place.is_dir() {
        for entry in fs::read_dir(place)? {
            if has_test(&entry?.path(), test)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if place.extension().is_none_or(|e| e != "rs") {
        return Ok(false);
    }
    let text = fs::read_to_string(place)?;
    let name = format!("fn {test}(");
    let Some(at) = text.find(&name) else { return Ok(false) };
    // The attribute stands a few lines above; proptest puts it inside its macro.
    let above: Vec<&str> = text[..at].lines().rev().take(6).collect();
    Ok(above.iter().any(|l| l.contains("test]") || l.contains("test(")))
}

#[cfg(test)]
mod tests {
    use super::promises;

    #[test]
    fn rows_are_promises() {
        let text = "| G1 | never dies | `faults::a`, `faults::b` |\n| no | x | y |\n|---|---|---|\n| L2 | x | none |\n";
        let found = promises(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].number, found[0].proofs.as_slice()), ("G1", &["faults::a", "faults::b"][..]));
        assert!(found[1].proofs.is_empty());
    }

    #[test]
    fn rows_of_figures_need_a_proof() {
        let found = promises("| F1 | x | y | `a.rs: A = 1` | `core::t` |\n| F2 | x | y | `a.rs: A = 1` |\n");
        assert_eq!((&found[0].figures[..], &found[0].proofs[..]), (&["a.rs: A = 1"][..], &["core::t"][..]));
        assert_eq!(found[1].figures.len(), 1);
        assert!(found[1].proofs.is_empty());
    }
}
