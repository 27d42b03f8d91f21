//! JSON as Python's `json.dumps(value, indent=2)` spells it, byte for byte.

use serde_json::{Number, Value};

/// Appends a value in ASCII, its objects in the order that they have. Every member of a container goes on
/// a line of its own; `line` begins one at the container's depth.
pub(crate) fn write_value(value: &Value, line: &str, text: &mut String) {
    let deeper = format!("{line}  ");
    match value {
        Value::Object(members) if !members.is_empty() => {
            let mut open = "{";
            for (key, member) in members {
                *text += open;
                *text += &deeper;
                write_string(key, text);
                *text += ": ";
                write_value(member, &deeper, text);
                open = ",";
            }
            *text += line;
            *text += "}";
        }
        Value::Array(members) if !members.is_empty() => {
            let mut open = "[";
            for member in members {
                *text += open;
                *text += &deeper;
                write_value(member, &deeper, text);
                open = ",";
            }
            *text += line;
            *text += "]";
        }
        Value::String(string) => write_string(string, text),
        Value::Number(number) => *text += &spell_number(number),
        plain => *text += &plain.to_string(),
    }
}

/// A string, in quotes.
pub(crate) fn write_string(string: &str, text: &mut String) {
    text.push('"');
    for char in string.chars() {
        match char {
            '"' => *text += r#"\""#,
            '\\' => *text += r"\\",
            '\n' => *text += r"\n",
            '\r' => *text += r"\r",
            '\t' => *text += r"\t",
            '\u{8}' => *text += r"\b",
            '\u{c}' => *text += r"\f",
            ' '..='~' => text.push(char),
            _ => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    *text += &format!("\\u{unit:04x}");
                }
            }
        }
    }
    text.push('"');
}

/// Integers as they are, floats as their `repr`.
fn spell_number(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => spell_float(float),
        _ => number.to_string(),
    }
}

/// Rust finds as few digits as Python and turns to exponents at the same sizes. But where two
/// spellings of that length are equally near, Rust takes the larger one and Python the even one, as
/// Rust does too when it is told how many digits to give. And Python's exponents have a sign and two
/// digits: `1e-05`.
fn spell_float(float: f64) -> String {
    let shortest = format!("{float:?}");
    let digits = shortest.split('e').next().unwrap_or_default();
    let places = digits.split_once('.').map_or(0, |(_, places)| places.len());
    let even = match digits.len() == shortest.len() {
        true => format!("{float:.places$}"),
        false => format!("{float:.places$e}"),
    };
    // At a power of two the nearest spelling of that length may be that of a neighbour.
    let text = match even.parse() == Ok(float) {
        true => even,
        false => shortest,
    };
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    /// The text of a value.
    pub(crate) fn python_json(value: &Value) -> String {
        let mut text = String::new();
        write_value(value, "\n", &mut text);
        text
    }

    // What Python 3 prints. More of it, random floats included, is compared in
    // `checkpoint::save::oracle`.
    #[rstest]
    #[case(json!(null), "null")]
    #[case(json!([]), "[]")]
    #[case(json!({}), "{}")]
    #[case(json!([true, [], [{}]]), "[\n  true,\n  [],\n  [\n    {}\n  ]\n]")]
    #[case(json!({"b": 1, "a": [2]}), "{\n  \"b\": 1,\n  \"a\": [\n    2\n  ]\n}")]
    #[case(json!("a/\"\\\n\r\t\u{8}\u{c}\0\u{1f}~\u{7f}"), r#""a/\"\\\n\r\t\b\f\u0000\u001f~\u007f""#)]
    #[case(json!("é\u{2028}😀"), r#""\u00e9\u2028\ud83d\ude00""#)]
    #[case(json!(u64::MAX), "18446744073709551615")]
    #[case(json!(i64::MIN), "-9223372036854775808")]
    #[case(json!(1.0), "1.0")]
    #[case(json!(-0.0), "-0.0")]
    #[case(json!(0.0001), "0.0001")]
    #[case(json!(0.00001), "1e-05")]
    #[case(json!(1.5e-7), "1.5e-07")]
    #[case(json!(9_999_999_999_999_998.0), "9999999999999998.0")]
    #[case(json!(1e16), "1e+16")]
    #[case(json!(1.234e100), "1.234e+100")]
    #[case(json!(5e-324), "5e-324")]
    // It is exactly ….625, between two spellings.
    #[case(json!(-217_630_493_406_233.63), "-217630493406233.62")]
    fn as_python_prints_it(#[case] value: Value, #[case] python: &str) {
        assert_eq!(python_json(&value), python);
    }

    proptest! {
        #[test]
        fn no_float_is_changed(float in any::<f64>()) {
            let parsed: f64 = spell_float(float).parse().unwrap();
            prop_assert_eq!(parsed.to_bits(), float.to_bits());
        }
    }
}
