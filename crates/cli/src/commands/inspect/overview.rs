//! What is in a checkpoint, for people: every tensor, and the sums.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use safeshard_core::{Checkpoint, CheckpointKind, Index, Printable};
use serde_json::Value;

use super::{Sums, View};
use crate::findings;
use crate::output::{FAINT, HEADING, Output};
use crate::table::{Align, Table};
use crate::text::{count, number, shape, size};

/// Of a value of metadata, so many characters are shown.
const VALUE: usize = 200;

/// Writes the table of tensors, and what goes with it.
pub(super) fn write(view: &View<'_>, out: &mut Output, width: Option<usize>) -> io::Result<()> {
    title(view, out)?;
    let several = view.checkpoint.files().len() > 1;
    let mut headings = vec![
        ("tensor", Align::Left),
        ("dtype", Align::Left),
        ("shape", Align::Left),
        ("size", Align::Right),
    ];
    headings.extend(several.then_some(("file", Align::Left)));
    let mut table = Table::new(&headings);
    for tensor in &view.tensors {
        let cells = [
            Printable::of(tensor.name).to_string(),
            Printable::of(tensor.dtype).to_string(),
            shape(tensor.shape),
            size(tensor.byte_len()),
        ];
        let file = several.then(|| Printable::of(tensor.file).to_string());
        table.row(cells.into_iter().chain(file));
    }
    table.write(out, width)?;
    by(view, "dtype", |tensor| tensor.dtype, out, width)?;
    if several {
        by(view, "file", |tensor| tensor.file, out, width)?;
    }
    metadata(view.checkpoint, out)?;
    rest(view, out)
}

/// Writes what it is in one line.
pub(super) fn title(view: &View<'_>, out: &mut Output) -> io::Result<()> {
    let files = view.checkpoint.files().len() as u64;
    let kind = match view.checkpoint.kind() {
        CheckpointKind::File => "one file".to_owned(),
        CheckpointKind::Index => format!("{} with an index", count(files, "shard")),
        CheckpointKind::Files => format!("{} without an index", count(files, "file")),
    };
    let totals = view.totals();
    let heading = out.style(HEADING);
    writeln!(
        out,
        "{heading}{}{heading:#}: {kind}, {}, {}, {}\n",
        Printable::of(view.path),
        count(totals.tensors, "tensor"),
        count(totals.parameters, "parameter"),
        size(totals.bytes),
    )
}

/// Writes what is quantised, aliases and findings.
pub(super) fn rest(view: &View<'_>, out: &mut Output) -> io::Result<()> {
    quantization(view.checkpoint, out)?;
    let aliases = view.checkpoint.aliases();
    if !aliases.is_empty() {
        let heading = out.style(HEADING);
        writeln!(out, "\n{heading}aliases{heading:#}")?;
    }
    for (dropped, kept) in aliases {
        let (dropped, kept) = (Printable::of(dropped), Printable::of(kept));
        writeln!(out, "{dropped} -> {kept}")?;
    }
    if !view.findings.is_empty() {
        writeln!(out)?;
    }
    for finding in &view.findings {
        findings::write(out, finding)?;
    }
    Ok(())
}

/// Writes how many weights there are of each scheme, and what `config.json` calls it.
fn quantization(checkpoint: &Checkpoint, out: &mut Output) -> io::Result<()> {
    let found = checkpoint.quantization();
    if found.is_empty() {
        return Ok(());
    }
    let heading = out.style(HEADING);
    writeln!(out, "\n{heading}quantized{heading:#}")?;
    for (scheme, weights) in found.counts() {
        writeln!(
            out,
            "{}: {}",
            scheme.description(),
            count(weights, "weight")
        )?;
    }
    if let Some(method) = &found.method {
        writeln!(out, "method by config.json: {}", Printable::of(method))?;
    }
    Ok(())
}

/// Writes the sums over tensors that have something in common.
fn by<'c>(
    view: &View<'c>,
    heading: &'static str,
    key: impl Fn(&super::Tensor<'c>) -> &'c str,
    out: &mut Output,
    width: Option<usize>,
) -> io::Result<()> {
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    for tensor in &view.tensors {
        sums.entry(key(tensor)).or_default().add(tensor);
    }
    let mut table = Table::new(&[
        (heading, Align::Left),
        ("tensors", Align::Right),
        ("parameters", Align::Right),
        ("size", Align::Right),
    ]);
    for (key, sums) in sums {
        table.row([
            Printable::of(key).to_string(),
            number(sums.tensors),
            number(sums.parameters),
            size(sums.bytes),
        ]);
    }
    if table.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    table.write(out, width)
}

/// Writes the metadata of the files, those that all have in common once, and of the index.
fn metadata(checkpoint: &Checkpoint, out: &mut Output) -> io::Result<()> {
    let files = checkpoint.files();
    let is_common = |(key, value): &(&str, &str)| {
        let mut values = files.iter().map(|file| file.header().metadata_value(key));
        values.all(|other| other == Some(*value))
    };
    let first = files.first().into_iter();
    let common: BTreeSet<_> = first
        .flat_map(|file| file.header().metadata())
        .filter(is_common)
        .collect();
    section(out, "metadata", common.iter().copied())?;
    if files.len() > 1 {
        for file in files {
            let own = file.header().metadata();
            let own = own.filter(|entry| !common.contains(entry));
            let title = format!("metadata of {}", file.name());
            section(out, &title, own)?;
        }
    }
    let index = checkpoint.index().into_iter().flat_map(Index::metadata);
    let index: Vec<_> = index
        .map(|(key, value)| match value {
            Value::String(text) => (key.as_str(), text.clone()),
            value => (key.as_str(), value.to_string()),
        })
        .collect();
    let index = index.iter().map(|(key, value)| (*key, value.as_str()));
    section(out, "metadata of the index", index)
}

fn section<'c>(
    out: &mut Output,
    title: &str,
    entries: impl Iterator<Item = (&'c str, &'c str)>,
) -> io::Result<()> {
    let mut entries = entries.peekable();
    if entries.peek().is_some() {
        let heading = out.style(HEADING);
        writeln!(out, "\n{heading}{}{heading:#}", Printable::of(title))?;
    }
    for (key, value) in entries {
        let end = value.char_indices().nth(VALUE).map(|(at, _)| at);
        let start = end.and_then(|end| value.get(..end)).unwrap_or(value);
        let (key, start) = (Printable::of(key), Printable::of(start));
        match end {
            Some(_) => {
                let (faint, len) = (out.style(FAINT), value.len());
                writeln!(out, "{key} = {start}… {faint}({len} bytes){faint:#}")?;
            }
            None => writeln!(out, "{key} = {start}")?,
        }
    }
    Ok(())
}
