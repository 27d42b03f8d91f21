//! What people are shown, against Unicode's own properties, as Python's `regex` has them.

use std::collections::BTreeSet;
use std::io;
use std::process::Command;

use safeshard_core::{Code, Error, Printable};

/// Looks empty, and is a symbol by its properties.
const EMPTY_BRAILLE: u32 = 0x2800;

/// Every character of a class, by number.
fn python(class: &str) -> BTreeSet<u32> {
    const PROGRAM: &str = "\
import regex, sys
pattern = regex.compile(sys.argv[1], regex.V1)
codes = (code for code in range(0x110000) if not 0xD800 <= code < 0xE000)
print(*(code for code in codes if pattern.fullmatch(chr(code))))";
    let python = std::env::var_os("SAFESHARD_PYTHON");
    let output = Command::new(python.expect("SAFESHARD_PYTHON is not set: run `cargo xtask test`"))
        .args(["-c", PROGRAM, class])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    stdout
        .split_whitespace()
        .map(|code| code.parse().unwrap())
        .collect()
}

fn escaped() -> BTreeSet<u32> {
    let is_escaped = |c: &char| {
        let text = c.to_string();
        let shown = Printable::of(&text).to_string();
        assert_eq!(shown != text, Printable::escapes(*c), "{c:?}");
        assert!(
            shown == text || shown.starts_with('\\') && shown.is_ascii(),
            "{shown}"
        );
        shown != text
    };
    ('\0'..=char::MAX)
        .filter(is_escaped)
        .map(u32::from)
        .collect()
}

#[test]
fn all_that_unicode_says_is_obeyed_or_not_seen_is_escaped() {
    let escaped = escaped();
    for class in [
        r"\p{Cc}",
        r"\p{Cf}",
        r"\p{Zl}",
        r"\p{Zp}",
        r"\p{Bidi_Control}",
        r"\p{Default_Ignorable_Code_Point}",
        r"\p{Variation_Selector}",
        r"\p{Noncharacter_Code_Point}",
        r"\p{Join_Control}",
        r"[\p{White_Space}--\x20]",
        r"[\p{Pattern_White_Space}--\x20]",
    ] {
        let missing = &python(class) - &escaped;
        assert!(missing.is_empty(), "{class}: {missing:x?}");
    }
}

#[test]
fn what_can_be_seen_is_not_escaped() {
    let mut seen = python(r"[\p{L}\p{M}\p{N}\p{P}\p{S}\x20--\p{Default_Ignorable_Code_Point}]");
    assert!(seen.len() > 100_000);
    assert!(seen.remove(&EMPTY_BRAILLE));
    let wrongly = &seen & &escaped();
    assert!(wrongly.is_empty(), "{wrongly:x?}");
}

#[test]
fn only_a_further_problem_begins_a_line() {
    let evil = "evil\nok: accepted\r\u{1b}[32m\u{2028}";
    let one = || {
        Error::io(Code::Io, io::Error::other(evil))
            .at_path(evil)
            .in_tensor(evil)
            .expected(evil)
            .found(evil)
            .help(evil)
    };
    let shown = r"evil\nok: accepted\r\u{1b}[32m\u{2028}";
    assert_eq!(one().to_string().matches(shown).count(), 6);
    let several = Error::all(vec![one(), one()]).to_string();
    assert_eq!(several.lines().count(), 3, "{several}");
    assert!(several.lines().skip(1).all(|line| line.starts_with("  - ")));
    // What was there is told exactly to programs.
    assert_eq!(one().tensor(), Some(evil));
}
