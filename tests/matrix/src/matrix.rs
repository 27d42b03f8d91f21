//! Every dtype, in every layout, from every framework into every framework, in one file, in shards
//! and, between those of Rust, in memory.
//!
//! Each cell of the matrix makes the same tensors in one framework, saves them, has the files looked at
//! by the reference, loads them in another framework, and compares bytes, dtype and shape with what a
//! naive generator says they are. What a framework cannot hold must be refused, under the name that
//! [`Framework::refuses_to_save`](framework::Framework::refuses_to_save) and its kin give.

use std::io::Write;

use rstest::rstest;
use safeshard_core::Dtype;

use case::Layout;
use framework::{Framework, Way};
use run::{Outcome, outcomes};
use table::Tally;

mod candle;
mod case;
mod chain;
mod framework;
mod ndarray;
mod python;
mod run;
mod table;
mod tch;

#[rstest]
fn tensors_are_the_same_in_every_framework(
    #[values(
        Dtype::Bool,
        Dtype::F4,
        Dtype::F6E2M3,
        Dtype::F6E3M2,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8E5M2,
        Dtype::F8E4M3,
        Dtype::F8E8M0,
        Dtype::F8E4M3Fnuz,
        Dtype::F8E5M2Fnuz,
        Dtype::I16,
        Dtype::U16,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::I32,
        Dtype::U32,
        Dtype::F32,
        Dtype::C64,
        Dtype::F64,
        Dtype::I64,
        Dtype::U64
    )]
    dtype: Dtype,
) {
    let cells = outcomes().iter().filter(|(cell, _)| cell.dtype == dtype);
    let wrong: Vec<_> = cells
        .filter_map(|(cell, outcome)| match outcome {
            Outcome::Wrong(what) => Some(format!("{cell:?}\n  {what}")),
            _ => None,
        })
        .collect();
    let first: Vec<_> = wrong.iter().take(5).map(String::as_str).collect();
    assert!(
        wrong.is_empty(),
        "{} cells are wrong:\n{}",
        wrong.len(),
        first.join("\n")
    );
}

/// Prints it past the test harness, which keeps what passing tests print.
#[test]
fn every_cell_is_run() {
    let tally = Tally::of(outcomes());
    let ways = Way::ALL.into_iter().map(|way| {
        let writers = Framework::ALL.into_iter();
        let pairs = writers.flat_map(|writer| Framework::ALL.map(|reader| (writer, reader)));
        pairs
            .filter(|&(writer, reader)| way.connects(writer, reader))
            .count()
    });
    let cells = Dtype::ALL.len() * Layout::ALL.len() * ways.sum::<usize>();
    let skipped = cells - outcomes().len();
    let line = format!(
        "matrix: {cells} cells: {} the same, {} expected errors, {} wrong, {skipped} skipped\n",
        tally.same, tally.refused, tally.wrong
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert_eq!(skipped, 0);
    // Also of a dtype that the other test does not list.
    assert_eq!(tally.wrong, 0);
}

#[test]
fn the_readme_shows_what_every_framework_holds() {
    let table = table::table(outcomes());
    if std::env::var_os("SAFESHARD_WRITE_MATRIX").is_some() {
        table::write_into_readme(&table);
    }
    assert_eq!(
        table::in_readme(),
        table,
        "README.md shows another table: `cargo xtask matrix` writes it"
    );
}
