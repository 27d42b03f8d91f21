//! Every console block of the documents is run, and must print what it shows.
//!
//! A line behind `$ ` is run by a shell, in a folder that has `examples/` and that later lines of the
//! same document find as earlier ones left it; `? 1` says what it ends with, if not with 0. With
//! `SAFESHARD_BLESS=1`, what is printed is written into the document instead.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use snapbox::assert_data_eq;
use tempfile::tempdir;

use crate::support::*;

const BEGIN: &str = "```console";
const END: &str = "```";

#[test]
fn readme() {
    check("README.md");
}

#[test]
fn the_readme_of_this_crate() {
    check("crates/cli/README.md");
}

#[test]
fn the_tour() {
    check("docs/cli.md");
}

#[track_caller]
fn check(document: &str) {
    let path = root().join(document);
    let text = fs::read_to_string(&path).unwrap();
    let folder = tempdir().unwrap();
    symlink(root().join("examples"), folder.path().join("examples")).unwrap();
    let (run, commands) = run(&text, folder.path());
    assert!(commands > 0, "no command in {document}");
    match env::var_os("SAFESHARD_BLESS") {
        Some(_) => fs::write(&path, run).unwrap(),
        None => assert_data_eq!(run, snapbox::Data::text(text).raw()),
    }
}

/// The document with what its commands print now, and how many there are.
fn run(document: &str, folder: &Path) -> (String, usize) {
    let mut lines = document.lines().peekable();
    let (mut text, mut commands) = (String::new(), 0);
    let mut inside = false;
    while let Some(line) = lines.next() {
        text.push_str(line);
        text.push('\n');
        inside = line == BEGIN || inside && line != END;
        let command = line.strip_prefix("$ ").filter(|_| inside);
        // Building is what the project's own checks do.
        let Some(command) = command.filter(|command| !command.starts_with("cargo ")) else {
            continue;
        };
        let mut command = command.to_owned();
        while command.ends_with('\\') {
            let more = lines.next().unwrap();
            command = format!("{command}\n{more}");
            text.push_str(more);
            text.push('\n');
        }
        // What it printed before.
        while lines
            .next_if(|line| *line != END && !line.starts_with("$ "))
            .is_some()
        {}
        let run = shell(folder, &format!("({command}) 2>&1"));
        match run.code.unwrap() {
            0 => {}
            code => text.push_str(&format!("? {code}\n")),
        }
        text.push_str(&run.stdout);
        commands += 1;
    }
    (text, commands)
}
