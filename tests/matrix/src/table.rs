//! README's table of what each framework holds, made of what became of the cells.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use safeshard_core::Dtype;

use crate::case::Layout;
use crate::framework::Framework;
use crate::run::{Cell, Outcome};

const BEGIN: &str = "<!-- matrix: `cargo xtask matrix` writes what follows -->\n";
const END: &str = "<!-- end of matrix -->\n";

/// How many cells ended how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) same: usize,
    pub(crate) refused: usize,
    pub(crate) wrong: usize,
}

impl Tally {
    pub(crate) fn of(outcomes: &BTreeMap<Cell, Outcome>) -> Self {
        let mut tally = Self::default();
        for outcome in outcomes.values() {
            match outcome {
                Outcome::Same => tally.same += 1,
                Outcome::NotSaved(_) | Outcome::NotLoaded(_) => tally.refused += 1,
                Outcome::Wrong(_) => tally.wrong += 1,
            }
        }
        tally
    }
}

/// The text between README's markers.
pub(crate) fn in_readme() -> String {
    let [_, table, _] = readme_around_table();
    table
}

pub(crate) fn write_into_readme(table: &str) {
    let [before, _, after] = readme_around_table();
    fs::write(readme(), [&before, table, &after].concat()).unwrap();
}

/// What is before the table, the table, and what is behind it.
fn readme_around_table() -> [String; 3] {
    let text = fs::read_to_string(readme()).unwrap();
    let begin = text.find(BEGIN).expect("README.md has the marker") + BEGIN.len();
    let end = text.find(END).expect("README.md has the marker");
    [&text[..begin], &text[begin..end], &text[end..]].map(str::to_owned)
}

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")
}

/// Both tables, and what they sum up.
pub(crate) fn table(outcomes: &BTreeMap<Cell, Outcome>) -> String {
    let mut text = head("dtype");
    for (cells, dtypes) in rows(Dtype::ALL, |&dtype, framework| {
        held(outcomes, dtype, framework)
    }) {
        let dtypes: Vec<_> = dtypes.iter().map(|dtype| format!("`{dtype}`")).collect();
        writeln!(text, "| {} | {cells} |", dtypes.join(" ")).unwrap();
    }
    text.push('\n');
    text += &head("layout");
    for (cells, layouts) in rows(&Layout::ALL, |&layout, framework| {
        laid_out(outcomes, layout, framework)
    }) {
        let layouts: Vec<_> = layouts.iter().map(ToString::to_string).collect();
        writeln!(text, "| {} | {cells} |", layouts.join(", ")).unwrap();
    }
    let Tally { same, refused, .. } = Tally::of(outcomes);
    let all = same + refused;
    write!(
        text,
        "\n{all} cells: {same} come out with the same bytes, dtype and shape, {refused} are refused under \
         these names, and none is left out.\n"
    )
    .unwrap();
    text
}

fn head(first: &str) -> String {
    let names = Framework::ALL.map(|framework| framework.to_string());
    let rule = " --- |".repeat(1 + names.len());
    format!("| {first} | {} |\n|{rule}\n", names.join(" | "))
}

/// Rows with the same cells are one.
fn rows<T>(all: &[T], cell: impl Fn(&T, Framework) -> String) -> Vec<(String, Vec<&T>)> {
    let mut rows: Vec<(String, Vec<&T>)> = Vec::new();
    for item in all {
        let cells = Framework::ALL.map(|framework| cell(item, framework));
        let cells = cells.join(" | ");
        match rows.iter_mut().find(|(other, _)| *other == cells) {
            Some((_, items)) => items.push(item),
            None => rows.push((cells, vec![item])),
        }
    }
    rows
}

/// Whether a framework saves and loads a dtype, at least in the ordinary layout.
fn held(outcomes: &BTreeMap<Cell, Outcome>, dtype: Dtype, framework: Framework) -> String {
    let saved = of_writer(outcomes, framework, dtype, Layout::Ordinary);
    let loads = outcomes.iter().filter_map(|(cell, outcome)| match outcome {
        _ if (cell.dtype, cell.reader) != (dtype, framework) => None,
        Outcome::NotLoaded(name) => Some(Some(name.as_str())),
        Outcome::Same => Some(None),
        _ => None,
    });
    let loaded = agreed(loads);
    match (saved, loaded) {
        (None, None) => "yes".to_owned(),
        (Some(saved), Some(loaded)) if saved == loaded => code(saved),
        (None, Some(loaded)) => format!("{} loading", code(loaded)),
        (Some(saved), None) => format!("{} saving", code(saved)),
        (Some(saved), Some(loaded)) => format!("{} saving, {} loading", code(saved), code(loaded)),
    }
}

/// Whether a framework saves a layout, and of which of its dtypes it does not.
fn laid_out(outcomes: &BTreeMap<Cell, Outcome>, layout: Layout, framework: Framework) -> String {
    let of = |dtype, layout| of_writer(outcomes, framework, dtype, layout);
    let mut refused: BTreeMap<&str, Vec<Dtype>> = BTreeMap::new();
    let mut held = 0;
    for &dtype in Dtype::ALL {
        if of(dtype, Layout::Ordinary).is_none() {
            held += 1;
            if let Some(name) = of(dtype, layout) {
                refused.entry(name).or_default().push(dtype);
            }
        }
    }
    let count: usize = refused.values().map(Vec::len).sum();
    let mut exceptions: Vec<_> = refused.into_iter().collect();
    exceptions.sort_by_key(|(_, dtypes)| std::cmp::Reverse(dtypes.len()));
    let mut text = match exceptions.first() {
        Some((name, _)) if count == held => code(name),
        _ => "yes".to_owned(),
    };
    if count == held && !exceptions.is_empty() {
        exceptions.remove(0);
    }
    for (name, dtypes) in exceptions {
        let dtypes: Vec<_> = dtypes.iter().map(|dtype| format!("`{dtype}`")).collect();
        write!(text, "; {}: {}", dtypes.join(" "), code(name)).unwrap();
    }
    text
}

/// Under which name a framework refuses to save.
fn of_writer(
    outcomes: &BTreeMap<Cell, Outcome>,
    framework: Framework,
    dtype: Dtype,
    layout: Layout,
) -> Option<&str> {
    agreed(outcomes.iter().filter_map(|(cell, outcome)| {
        let place = (cell.writer, cell.dtype, cell.layout);
        (place == (framework, dtype, layout)).then_some(match outcome {
            Outcome::NotSaved(name) => Some(name.as_str()),
            _ => None,
        })
    }))
}

/// What all of these are.
fn agreed<T: PartialEq + std::fmt::Debug>(mut all: impl Iterator<Item = T>) -> T {
    let first = all.next().expect("every row has cells");
    for other in all {
        assert_eq!(other, first, "the table has one word for what differs");
    }
    first
}

fn code(name: &str) -> String {
    if name.contains(' ') {
        name.to_owned()
    } else {
        format!("`{name}`")
    }
}
