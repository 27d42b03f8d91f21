//! What the library advises, in the words of the command line.
//!
//! The library speaks to those who call it and names its own items. Here stands what to do instead for those
//! who type; tests look through the library for advice that is missing here, and for flags that do not exist.

use std::borrow::Cow;
use std::fmt;

use safeshard_core::Error;

/// A message of the library.
pub(crate) fn message(error: &Error) -> impl fmt::Display {
    error.worded(of)
}

/// Advice of the library.
pub(crate) fn of(advice: &str) -> Cow<'_, str> {
    let said = WORDS.iter().filter(|(library, _)| advice.contains(library));
    said.fold(Cow::from(advice), |advice, (library, ours)| {
        advice.replace(library, ours).into()
    })
}

/// What the library says, and what is said here.
const WORDS: &[(&str, &str)] = &[
    (
        "raise `Limits::header_bytes`",
        "pass `--limit header=BYTES`",
    ),
    ("raise `Limits::tensors`", "pass `--limit tensors=N`"),
    ("raise `Limits::name_bytes`", "pass `--limit name=BYTES`"),
    ("raise `Limits::rank`", "pass `--limit rank=N`"),
    (
        "raise `Limits::metadata_bytes`",
        "pass `--limit metadata=BYTES`",
    ),
    (
        "raise `Limits::ignored_bytes`",
        "pass `--limit ignored=BYTES`",
    ),
    ("raise `Limits::index_bytes`", "pass `--limit index=BYTES`"),
    ("raise `Limits::shards`", "pass `--limit shards=N`"),
    (
        "choose with `Prefer::Index` or `Prefer::Single`",
        "choose with `--prefer index` or `--prefer single`",
    ),
    (
        "`UnknownDtype::Keep` reads the other tensors",
        "`inspect` lists it, and `convert --exclude` writes the others",
    ),
    (
        "`Unsupported::Widen` loads it as",
        "`--dtype-for` writes it as",
    ),
    (
        "`Unsupported::Skip` leaves it out",
        "`--exclude` leaves it out",
    ),
    ("asked for as ", "by `--dtype-for` as "),
    ("load it as ", "leave it as "),
    ("`Checkpoint::dequantised` to ", "--dequantize "),
    (
        "write one with `write_index`, or open the list of files",
        "write one with `safeshard index --write`",
    ),
    (
        "save them with `Ties::Dedup` or `Ties::Duplicate`",
        "`convert` stores each of them",
    ),
    (
        "save with `Losses::Accept`",
        "pass `--accept-loss` to lose them",
    ),
    (
        "open the checkpoint with `Io::mmap` or from bytes",
        "pass `--io mmap`",
    ),
    ("or work on fewer threads", "or pass `--threads` with fewer"),
    ("or do not copy files along", "or leave out `--with-files`"),
    (
        "let the filter keep one",
        "let `--include` and `--exclude` keep one",
    ),
    ("change the rename rule", "change `--rename`"),
    (
        "or read its weights with `PickledCode::Ignore`, which runs nothing either",
        "`safeshard convert FILE OUT --allow-code` takes its weights and runs nothing either",
    ),
    (
        "raise `ImportLimits` if the file is trusted",
        "no file of weights is known to need as much",
    ),
    (
        "raise `ImportLimits::expansion` if the file is trusted",
        "no file of weights is known to need as much",
    ),
    (
        "say under which key the one you mean is",
        "take one of them out with `safeshard convert FILE OUT --key KEY`",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use clap::{Command, CommandFactory};
    use safeshard_core::Code;

    use super::*;
    use crate::args::Cli;

    fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => rust_files(&path, files),
                false if path.extension().is_some_and(|end| end == "rs") => files.push(path),
                false => {}
            }
        }
    }

    /// The texts in the core's code, but for those of its tests, with what was broken into lines as one.
    fn texts() -> Vec<String> {
        let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src");
        let mut files = Vec::new();
        rust_files(&core, &mut files);
        assert!(files.len() > 50, "{}", files.len());
        let mut texts = Vec::new();
        for file in files {
            let code = fs::read_to_string(&file).unwrap();
            let code = code.split("#[cfg(test)]\nmod ").next().unwrap();
            let lines = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            let code = lines.collect::<Vec<_>>().join("\n");
            // Every other part between quotation marks is a text.
            let code = code
                .replace("\\\"", "\u{1}")
                .replace("b'\"'", "")
                .replace("'\"'", "");
            let parts = code.split('"').skip(1).step_by(2);
            texts.extend(parts.map(|text| {
                let lines: Vec<_> = text.split("\\\n").map(str::trim_start).collect();
                lines.concat()
            }));
        }
        texts
    }

    /// Whether it names an item of the library: `Type`, `Type::…`.
    fn names_rust(text: &str) -> bool {
        let mut quoted = text.split('`').skip(1).step_by(2);
        quoted.any(|quoted| {
            let is_path = |letter: char| letter.is_ascii_alphanumeric() || letter == ':';
            quoted.starts_with(char::is_uppercase)
                && quoted.contains(char::is_lowercase)
                && quoted.chars().all(is_path)
        })
    }

    #[test]
    fn no_advice_of_the_library_names_its_items_here() {
        let texts = texts();
        let named: Vec<_> = texts.iter().filter(|text| names_rust(text)).collect();
        assert!(named.len() >= 10, "{named:?}");
        for text in named {
            assert!(!names_rust(&of(text)), "no words for: {text}");
        }
        for code in Code::ALL {
            assert!(!names_rust(&of(code.advice())), "{}", code.as_str());
        }
    }

    #[test]
    fn the_library_names_no_flag_and_no_command() {
        for text in texts() {
            let is_flag = text.split_whitespace().any(|word| {
                let word = word.trim_matches(['`', '(', ')', ',', ';']);
                word.strip_prefix("--")
                    .is_some_and(|flag| flag.starts_with(char::is_alphabetic))
            });
            assert!(!is_flag && !text.contains("`safeshard "), "{text}");
        }
    }

    #[test]
    fn every_word_is_one_that_the_library_says() {
        let texts = texts();
        for (library, _) in WORDS {
            assert!(texts.iter().any(|text| text.contains(library)), "{library}");
        }
    }

    fn flags(command: &Command, found: &mut HashSet<String>) {
        for argument in command.get_arguments() {
            found.extend(argument.get_long().map(|long| format!("--{long}")));
        }
        command
            .get_subcommands()
            .for_each(|command| flags(command, found));
    }

    #[test]
    fn every_flag_that_is_advised_exists() {
        let mut known = HashSet::new();
        flags(&Cli::command(), &mut known);
        for (_, ours) in WORDS {
            let words = ours.split([' ', '`', '=']);
            for flag in words.filter(|word| word.starts_with("--")) {
                assert!(known.contains(flag), "{flag}");
            }
        }
    }
}
