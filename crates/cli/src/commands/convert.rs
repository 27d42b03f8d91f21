//! `safeshard convert`: other dtypes, other names, fewer tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use regex::Regex;
use safeshard_core::{
    Checkpoint, Code, ConvertOptions, Dtype, DtypeRule, Error, Filter, Rename, ReshardReport,
    convert,
};
use safeshard_import::{ImportOptions, PickledCode};

use super::writing::{Places, warn};
use crate::failure::{Outcome, Result};
use crate::output::Output;
use crate::session::Session;
use crate::text::count;

const RULES: &str = "\
A REGEX matches anywhere in a name; `^` and `$` are its ends. Names are those in IN, also of tied tensors
that are stored once.

Examples:
  safeshard convert model/ half/ --dtype BF16
  safeshard convert model/ half/ --dtype F16 --dtype-for 'norm=F32'
  safeshard convert model/ bare/ --include '^encoder\\.' --rename '^encoder\\.='
  safeshard convert model/ hub/ --rename '\\.gamma$=.weight' --rename '\\.beta$=.bias'
  safeshard convert pytorch_model.bin model.safetensors
  safeshard convert checkpoint.pt model.safetensors --key ema";

/// Change dtypes, rename tensors or leave some out
///
/// Dtypes change only as asked for. Numbers are rounded to the nearest, as torch does it; those too large
/// become infinite, and that is said.
#[derive(Debug, clap::Args)]
#[command(after_help = RULES)]
pub(crate) struct Args {
    #[command(flatten)]
    places: Places,

    /// What F64, F32, BF16 and F16 become, one of them; all else stays as it is. Quantised weights are refused
    #[arg(long, value_name = "DTYPE", value_parser = wide_float)]
    dtype: Option<Dtype>,

    /// What tensors become whose names match, whatever they are; the first that matches counts, and
    /// comes before `--dtype`
    #[arg(long, value_name = "REGEX=DTYPE", value_parser = dtype_for)]
    dtype_for: Vec<(Regex, Dtype)>,

    /// What quantised weights become: F32, BF16 or F16; their scales are used up, and `--with-files` takes
    /// `config.json` along without its entry of the quantisation
    #[arg(long, value_name = "DTYPE", value_parser = narrow_float)]
    dequantize: Option<Dtype>,

    /// Take only tensors whose names match one of these
    #[arg(long, value_name = "REGEX")]
    include: Vec<Regex>,

    /// Leave out tensors whose names match, also of those included
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<Regex>,

    /// Replace what matches in names, one after the other; `${1}` is what the first group matched
    #[arg(long, value_name = "FROM=TO", value_parser = renaming)]
    rename: Vec<(Regex, String)>,

    /// Of a file of torch, take what is under this key: `model`, `ema.encoder`, `.` for everything
    #[arg(long, value_name = "PATH")]
    key: Option<String>,

    /// Take the weights out of a pickle that would run code if Python loaded it; nothing is ever run
    #[arg(long)]
    allow_code: bool,
}

pub(super) fn run(args: &Args, session: &Session) -> Result {
    let checkpoint = args.places.open(session, &import(args))?;
    check_companions(args, &checkpoint)?;
    warn_of_idle_patterns(args, &checkpoint);
    let bar = Places::bar(session);
    let options = ConvertOptions {
        dtype: Some(dtype_rule(args)),
        dequantise: args.dequantize,
        filter: filter(args),
        rename: rename(args),
        reshard: args.places.options(session, &bar),
    };
    let report = convert(&checkpoint, args.places.to(), &options)?;
    drop(bar);
    args.places
        .say(&report, session, |out| changes(&report, out))?;
    Ok(Outcome::Fine)
}

fn import(args: &Args) -> ImportOptions {
    ImportOptions {
        key: args.key.clone(),
        code: match args.allow_code {
            true => PickledCode::Ignore,
            false => PickledCode::Refuse,
        },
        ..ImportOptions::default()
    }
}

fn dtype_rule(args: &Args) -> DtypeRule {
    let (rules, floats) = (args.dtype_for.clone(), args.dtype);
    Arc::new(move |name, stored| {
        let mut rules = rules.iter();
        match rules.find(|(names, _)| names.is_match(name)) {
            Some((_, dtype)) => Some(*dtype),
            None => floats.filter(|_| is_wide_float(stored)),
        }
    })
}

/// Checks that no pattern gives a dtype to what a quantised weight is read with. The library cannot tell that
/// from a rule for all floats, by which it keeps its dtype.
fn check_companions(args: &Args, checkpoint: &Checkpoint) -> Result<()> {
    let is_wanted = filter(args).unwrap_or_else(|| Arc::new(|_| true));
    let named = |name: &str| {
        let mut rules = args.dtype_for.iter();
        let rule = rules.find(|(names, _)| names.is_match(name));
        rule.map(|(_, dtype)| *dtype)
    };
    let weights = checkpoint.quantization().tensors.iter();
    let companions = weights.flat_map(|weight| &weight.companions);
    let mut problems = Vec::new();
    for name in companions.map(|it| &it.name).filter(|name| is_wanted(name)) {
        let stored = checkpoint.info(name)?.dtype;
        if let Some(dtype) = named(name).filter(|dtype| *dtype != stored) {
            let problem = Error::new(Code::QuantizedCompanion).in_tensor(name);
            let problem = problem.expected(stored);
            let problem = problem.found(format_args!("`--dtype-for` makes {dtype} of it"));
            problems.push(problem.help("leave it out of the pattern"));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::all(problems).into()),
    }
}

fn filter(args: &Args) -> Option<Filter> {
    let (include, exclude) = (args.include.clone(), args.exclude.clone());
    if include.is_empty() && exclude.is_empty() {
        return None;
    }
    Some(Arc::new(move |name| {
        let is_in = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(name));
        (include.is_empty() || is_in(&include)) && !is_in(&exclude)
    }))
}

fn rename(args: &Args) -> Option<Rename> {
    let rules = args.rename.clone();
    if rules.is_empty() {
        return None;
    }
    Some(Arc::new(move |name| {
        let renamed = |name: String, (from, to): &(Regex, String)| {
            from.replace_all(&name, to.as_str()).into_owned()
        };
        rules.iter().fold(name.to_owned(), renamed)
    }))
}

/// A pattern that matches nothing is mostly a mistake.
fn warn_of_idle_patterns(args: &Args, checkpoint: &Checkpoint) {
    let names = checkpoint.names();
    let dtype_for = args.dtype_for.iter().map(|(pattern, _)| pattern);
    let plain = args.include.iter().chain(&args.exclude).chain(dtype_for);
    for pattern in plain.filter(|pattern| !names.iter().any(|name| pattern.is_match(name))) {
        warn(&format!("no name matches `{pattern}`"));
    }
    // Each sees what those before it left of a name.
    let mut idle = vec![true; args.rename.len()];
    for name in names {
        let mut name = Cow::Borrowed(name);
        for ((from, to), idle) in args.rename.iter().zip(&mut idle) {
            if from.is_match(&name) {
                *idle = false;
                name = Cow::Owned(from.replace_all(&name, to.as_str()).into_owned());
            }
        }
    }
    for ((from, _), _) in args.rename.iter().zip(idle).filter(|(_, idle)| *idle) {
        warn(&format!("no name matches `{from}`"));
    }
}

/// A line for each kind of change, and for what stayed as it was.
fn changes(report: &ReshardReport, out: &mut Output) -> Result<()> {
    let mut casts: BTreeMap<(Dtype, Dtype), u64> = BTreeMap::new();
    for cast in &report.cast {
        *casts.entry((cast.from, cast.to)).or_default() += 1;
    }
    for ((from, to), tensors) in casts {
        writeln!(out, "{from} to {to}: {}", count(tensors, "tensor"))?;
    }
    for (dtype, tensors) in &report.unchanged {
        writeln!(out, "{dtype} as before: {}", count(*tensors, "tensor"))?;
    }
    for (what, number) in [
        ("renamed", report.renamed.len()),
        ("left out", report.left_out.len()),
    ] {
        if number > 0 {
            writeln!(out, "{what}: {}", count(number as u64, "tensor"))?;
        }
    }
    Ok(())
}

fn is_wide_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::Bf16 | Dtype::F16)
}

fn wide_float(text: &str) -> Result<Dtype, String> {
    let dtype = dtype(text)?;
    match is_wide_float(dtype) {
        true => Ok(dtype),
        false => {
            Err("floats become F64, F32, BF16 or F16; `--dtype-for` reaches others".to_owned())
        }
    }
}

fn narrow_float(text: &str) -> Result<Dtype, String> {
    let dtype = dtype(text)?;
    match dtype {
        Dtype::F32 | Dtype::Bf16 | Dtype::F16 => Ok(dtype),
        _ => Err("quantised weights become F32, BF16 or F16".to_owned()),
    }
}

/// A dtype by the format's name or torch's, in letters of any size.
fn dtype(text: &str) -> Result<Dtype, String> {
    let name = text.to_ascii_uppercase();
    let name = match name.strip_prefix("TORCH.").unwrap_or(&name) {
        "FLOAT64" | "FP64" | "DOUBLE" => "F64",
        "FLOAT32" | "FP32" | "FLOAT" => "F32",
        "FLOAT16" | "FP16" | "HALF" => "F16",
        "BFLOAT16" => "BF16",
        other => other,
    };
    Dtype::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
        format!("no dtype is called that; there are {}", names.join(", "))
    })
}

fn dtype_for(text: &str) -> Result<(Regex, Dtype), String> {
    let (pattern, name) = text.rsplit_once('=').ok_or("write it as REGEX=DTYPE")?;
    Ok((regex(pattern)?, dtype(name)?))
}

/// The two are parted by the first `=` that is not behind a backslash.
fn renaming(text: &str) -> Result<(Regex, String), String> {
    let mut behind_backslash = false;
    let at = text.bytes().position(|byte| {
        let parts = byte == b'=' && !behind_backslash;
        behind_backslash = byte == b'\\' && !behind_backslash;
        parts
    });
    let parts = at.and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?)));
    match parts {
        Some((from, to)) if !from.is_empty() => {
            let from = regex(from)?;
            let to = replacement(&from, to)?;
            Ok((from, to))
        }
        _ => Err("write it as FROM=TO".to_owned()),
    }
}

/// What replaces a match, in which groups that do not exist are refused: they would stand for nothing, or
/// for themselves. `$1_x` is the first group and `_x`, as everywhere else where names have no digits in front.
fn replacement(from: &Regex, to: &str) -> Result<String, String> {
    let mut checked = String::with_capacity(to.len());
    let mut rest = to;
    while let Some(at) = rest.find(['$', '\\']) {
        let (before, special) = rest.split_at(at);
        checked.push_str(before);
        let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        if let Some(behind) = special.strip_prefix('\\') {
            if behind.starts_with(|letter: char| letter.is_ascii_digit()) {
                return Err("a group is written `${1}`, not `\\1`".to_owned());
            }
            checked.push('\\');
            rest = behind;
            continue;
        }
        let behind = special.get(1..).unwrap_or_default();
        if let Some(behind) = behind.strip_prefix('$') {
            checked.push_str("$$");
            rest = behind;
            continue;
        }
        let (group, behind) = match behind.strip_prefix('{') {
            Some(braced) => braced.split_once('}').ok_or("`${` without a `}`")?,
            None => {
                let is_number = behind.starts_with(|letter: char| letter.is_ascii_digit());
                let end = behind.find(|letter: char| match is_number {
                    true => !letter.is_ascii_digit(),
                    false => !is_word(letter),
                });
                behind.split_at(end.unwrap_or(behind.len()))
            }
        };
        if group.is_empty() {
            return Err("`$` stands before a group; write `$$` for the letter itself".to_owned());
        }
        let exists = match group.parse::<usize>() {
            Ok(number) => number < from.captures_len(),
            Err(_) => from.capture_names().flatten().any(|name| name == group),
        };
        if !exists {
            return Err(format!("`{from}` has no group `{group}`"));
        }
        checked.push_str(&format!("${{{group}}}"));
        rest = behind;
    }
    checked.push_str(rest);
    Ok(checked)
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| error.to_string())
}
