//! What is printed fits where it goes: terminals of any width, pipes, people without colour.

use std::fs;

use tempfile::tempdir;

use crate::support::*;

/// Runs a line on a terminal of so many columns.
fn on_terminal(columns: usize, line: &str) -> String {
    let line = format!("stty cols {columns} rows 24; {line}");
    crate::support::on_terminal(&bert(), &line)
}

fn strip(text: &str) -> String {
    let text = anstream::adapter::strip_str(text).to_string();
    text.replace('\r', "")
}

#[test]
fn a_terminal_gets_colour_and_lines_that_fit() {
    for columns in [20, 40, 60, 90] {
        let text = on_terminal(columns, "safeshard inspect .");
        assert!(text.contains("\u{1b}["), "{text:?}");
        let plain = strip(&text);
        let table: Vec<_> = plain.lines().skip(2).take(40).collect();
        assert!(table.iter().any(|line| line.contains('…')), "{plain}");
        for line in table {
            assert!(line.chars().count() <= columns, "{columns}: {line}");
        }
    }
}

#[test]
fn no_color_is_obeyed() {
    let text = on_terminal(100, "NO_COLOR=1 safeshard inspect .");
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn a_pipe_gets_plain_text_of_any_width() {
    let text = shell(&bert(), "safeshard inspect .").ended(0).stdout;
    assert!(!text.contains(['\u{1b}', '…']), "{text:?}");
    assert!(text.contains("encoder.layer.0.attention.output.LayerNorm.weight  F32    [32]"));
}

#[test]
fn bars_are_for_terminals() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[floats("w", &vec![1.0; 16 << 20])]);
    let path = path.to_str().unwrap();
    // While it is drawn, it says what is done.
    let shown = on_terminal(100, &format!("safeshard digest {path}"));
    assert!(shown.contains("digesting"), "{shown:?}");
    for flags in ["--quiet", "| cat", "2> /dev/null"] {
        let shown = on_terminal(100, &format!("safeshard digest {path} {flags}"));
        assert!(!shown.contains("digesting"), "{flags}: {shown:?}");
    }
    let shown = on_terminal(100, &format!("safeshard diff --json {path} {path}"));
    assert!(!shown.contains("comparing"), "{shown:?}");
    assert_eq!(
        shell(folder.path(), &format!("safeshard digest {path}")).stderr,
        ""
    );
}

#[test]
fn whoever_reads_may_stop() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let many: Vec<_> = (0..20_000).map(|at| format!("layer.{at}.weight")).collect();
    let tensors: Vec<_> = many.iter().map(|name| floats(name, &[1.0])).collect();
    write(&path, &tensors);
    for command in [
        "inspect",
        "inspect --json",
        "inspect --tree",
        "digest --tensors",
    ] {
        let line = format!("{{ safeshard {command} model.safetensors; echo $? >&2; }} | head -n 1");
        let run = shell(folder.path(), &line);
        assert_eq!(run.stderr, "0\n", "{command}");
    }
}

#[test]
fn a_full_medium_is_told() {
    let run = shell(&bert(), "safeshard inspect . > /dev/full").ended(2);
    assert!(
        run.stderr.starts_with("error: standard output: "),
        "{}",
        run.stderr
    );
    // Nor does anything go wrong where nobody can be told.
    shell(&bert(), "safeshard inspect /nonexistent 2>&-").ended(2);
    shell(&bert(), "safeshard inspect . >&-");
}

#[test]
fn what_the_system_said_is_said_once() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("bert");
    let said = fs::create_dir(&below).unwrap_err().to_string();
    let run = safeshard(["reshard".as_ref(), bert().as_path(), &below]).ended(2);
    assert_eq!(run.stderr.matches(&said).count(), 1, "{}", run.stderr);
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    for wrong in [
        &[][..],
        &["nonsense"],
        &["inspect"],
        &["verify", "x", "--level", "deep"],
        &["verify", "x", "--threads", "0"],
        &["inspect", "x", "--io", "magic"],
    ] {
        let run = safeshard(wrong).ended(2);
        assert_eq!(run.stdout, "", "{wrong:?}");
    }
    for fine in [
        &["--help"][..],
        &["--version"],
        &["help", "verify"],
        &["diff", "-h"],
    ] {
        safeshard(fine).ended(0);
    }
}

#[test]
fn a_scheme_that_is_not_built_in_is_a_usage_error() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    for (before, after) in [
        (&["inspect"][..], &[][..]),
        (&["inspect", "--json"], &[]),
        (&["inspect"], &["gs://bucket/x.safetensors"]),
        (&["verify"], &[]),
        (&["verify", "--level", "content", "--json"], &[]),
        (&["digest"], &[]),
        (&["diff"], &["hf://org/other"]),
        (&["reshard"], &[out]),
        (&["convert"], &[out, "--dtype", "F16"]),
    ] {
        let args = [before, &["hf://org/name@main"], after].concat();
        let run = safeshard(&args).ended(2);
        assert_eq!(run.stdout, "", "{args:?}");
        let said = "hf://org/name@main: places with this scheme are not built in";
        assert!(run.stderr.contains(said), "{args:?}: {}", run.stderr);
    }
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn shells_and_man_can_use_what_is_generated() {
    let folder = tempdir().unwrap();
    for shell_name in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = safeshard(["completions", shell_name]).ended(0).stdout;
        assert!(script.contains("manifest"), "{shell_name}");
        fs::write(folder.path().join(shell_name), script).unwrap();
    }
    shell(folder.path(), "bash -n bash").ended(0);
    for args in [&["man"][..], &["man", "verify"]] {
        let page = safeshard(args).ended(0).stdout;
        assert!(page.contains(".TH safeshard"), "{page}");
    }
    safeshard(["man", "nonsense"]).ended(2);
}
