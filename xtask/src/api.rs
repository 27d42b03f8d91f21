//! What the libraries offer to others: one line an item, in `api/`, so that a diff shows every change of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use public_api::{Builder, PublicItem};

use crate::{Result, Tree, ci, step};

const CRATES: [&str; 6] = [
    "safeshard",
    "safeshard-candle",
    "safeshard-core",
    "safeshard-import",
    "safeshard-ndarray",
    "safeshard-tch",
];

/// Of rustdoc's JSON, as `public-api` reads it; that of Rust 1.95.
const FORMAT: &str = "57";

/// Traits that types have or lack without anybody's saying so, and that new versions of Rust add to. Of these,
/// only `Send` and `Sync` are promises.
const NO_PROMISES: [&str; 6] = [
    "core::marker::Freeze",
    "core::marker::StructuralPartialEq",
    "core::marker::Unpin",
    "core::marker::UnsafeUnpin",
    "core::panic::unwind_safe::RefUnwindSafe",
    "core::panic::unwind_safe::UnwindSafe",
];

/// Writes `api/`.
pub(crate) fn write(tree: &Tree) -> Result {
    let Some(found) = interfaces(tree)? else {
        return Err("the interfaces cannot be read, see above".to_owned());
    };
    for (name, text) in found {
        let path = snapshot(tree, name);
        fs::write(&path, text).map_err(|why| format!("{}: {why}", path.display()))?;
    }
    Ok(())
}

/// Says what differs from `api/`.
pub(crate) fn check(tree: &Tree) -> Result {
    let mut changed = Vec::new();
    for (name, text) in interfaces(tree)?.unwrap_or_default() {
        let path = snapshot(tree, name);
        let recorded =
            fs::read_to_string(&path).map_err(|why| format!("{}: {why}", path.display()))?;
        if recorded != text {
            changed.push(format!("{name}:\n{}", difference(&recorded, &text)));
        }
    }
    match changed.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "the public interface is not the one in api/; if that is meant, run `cargo xtask api`, and \
             say so in CHANGELOG.md:\n{}",
            changed.join("\n")
        )),
    }
}

fn snapshot(tree: &Tree, name: &str) -> PathBuf {
    tree.root.join("api").join(name).with_extension("txt")
}

/// Of every crate, name and interface; `None`, and a warning, where this Rust describes them in another way.
fn interfaces(tree: &Tree) -> Result<Option<Vec<(&'static str, String)>>> {
    let mut doc = ci::doc(tree)?;
    doc.env("RUSTDOC", tree.root.join("xtask/rustdoc-json"))
        .env("RUSTDOCFLAGS", "-Z unstable-options --output-format json");
    step("public interfaces", &mut doc)?;
    let mut found = Vec::new();
    for name in CRATES {
        let json = tree.target.join("doc").join(name.replace('-', "_"));
        let json = json.with_extension("json");
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", json.display());
        let text = fs::read_to_string(&json).map_err(|why| failed(&why))?;
        let format = format_of(&text).unwrap_or("none");
        if format != FORMAT {
            eprintln!(
                "xtask: WARNING: this Rust writes format {format} of rustdoc's JSON, and {FORMAT} is known: \
                 the public interfaces are NOT CHECKED"
            );
            return Ok(None);
        }
        let items = Builder::from_rustdoc_json(&json)
            .omit_blanket_impls(true)
            .build()
            .map_err(|why| failed(&why))?;
        found.push((name, lines(items.items())));
    }
    Ok(Some(found))
}

/// The number is the last of all keys.
fn format_of(json: &str) -> Option<&str> {
    let (_, behind) = json.rsplit_once("\"format_version\":")?;
    behind.split([',', '}']).next()
}

fn lines<'i>(items: impl Iterator<Item = &'i PublicItem>) -> String {
    let items = items.map(|item| format!("{item}\n"));
    items.filter(|item| !is_no_promise(item)).collect()
}

/// Whether it says that a type has, or lacks, one of these traits.
fn is_no_promise(item: &str) -> bool {
    item.starts_with("impl")
        && NO_PROMISES
            .iter()
            .any(|name| item.contains(&format!("{name} for ")))
}

/// The lines that went and came.
fn difference(before: &str, after: &str) -> String {
    let [old, new] = [before, after].map(|text| text.lines().collect::<BTreeSet<_>>());
    let went = old.difference(&new).map(|line| format!("- {line}"));
    let came = new.difference(&old).map(|line| format!("+ {line}"));
    went.chain(came).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_found_behind_everything_else() {
        let json = r#"{"docs":"\"format_version\":1","paths":{},"format_version":57}"#;
        assert_eq!(format_of(json), Some(FORMAT));
        assert_eq!(format_of("{}"), None);
    }

    #[test]
    fn of_traits_that_come_by_themselves_only_promises_are_kept() {
        for line in [
            "impl core::marker::Unpin for safeshard_core::Error",
            "impl<D> core::marker::Freeze for safeshard_core::Fill<D> where D: core::marker::Freeze",
            "impl !core::panic::unwind_safe::UnwindSafe for safeshard_core::Cancel",
        ] {
            assert!(is_no_promise(line), "{line}");
        }
        for line in [
            "impl core::marker::Send for safeshard_core::Error",
            "impl !core::marker::Sync for safeshard_core::SaveTensor<'t>",
            "pub fn safeshard_core::save(core::marker::Unpin)",
        ] {
            assert!(!is_no_promise(line), "{line}");
        }
    }

    #[test]
    fn only_lines_that_went_or_came_are_shown() {
        assert_eq!(difference("a\nb\n", "b\nc\n"), "- a\n+ c");
    }
}
