//! That each floor of the core uses only those below it, and says by true paths what it uses.

use std::fs;
use std::path::Path;

use crate::{Result, Tree};

/// Each floor, and what of the crate it may name.
const FLOORS: [(&str, &[&str]); 3] = [
    ("format", &["format"]),
    ("io", &["format", "io"]),
    ("checkpoint", &["format", "io", "checkpoint"]),
];

/// What lies under all of them.
const GROUND: [&str; 3] = ["error", "limits", "printable"];

/// Says every line that reaches up.
pub(crate) fn check(tree: &Tree) -> Result {
    let source = tree.root.join("crates/core/src");
    let mut found = Vec::new();
    for (floor, below) in FLOORS {
        look_through(&source.join(floor), below, &mut found)?;
    }
    match found.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "the floors of the core use only those below, by their true paths (`crate::io::source`, \
             not `crate::ReadAt`):\n{}",
            found.join("\n")
        )),
    }
}

fn look_through(folder: &Path, below: &[&str], found: &mut Vec<String>) -> Result {
    let failed = |why| format!("{}: {why}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            look_through(&path, below, found)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).map_err(failed)?;
            let lines = (1..).zip(text.lines());
            let reaching_up = lines.filter(|(_, line)| reaches_up(line, below));
            found.extend(
                reaching_up
                    .map(|(number, line)| format!("{}:{number}: {}", path.display(), line.trim())),
            );
        }
    }
    Ok(())
}

/// Whether a line of code names something of the crate that is not on these floors.
fn reaches_up(line: &str, below: &[&str]) -> bool {
    // Documentation links to what users call it.
    let code = line.split("//").next().unwrap_or_default();
    let mut paths = code.split("crate::").skip(1);
    paths.any(|path| {
        let name = path.split(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
        let name = name.into_iter().next().unwrap_or_default();
        !below.contains(&name) && !GROUND.contains(&name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_above_or_is_named_by_its_face_reaches_up() {
        let io = FLOORS[1].1;
        for line in [
            "use crate::checkpoint::commit;",
            "use crate::{Code, Error};",
            "    crate::ReadAt::len(self)",
            "pub(in crate::checkpoint) fn f() {}",
        ] {
            assert!(reaches_up(line, io), "{line}");
        }
        for line in [
            "use crate::io::source::ReadAt;",
            "use crate::error::{Code, Error};",
            "/// As [`save`](crate::save).",
            "use super::source::ReadAt;",
        ] {
            assert!(!reaches_up(line, io), "{line}");
        }
    }
}
