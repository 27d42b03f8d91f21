//! Tensor names: their natural order, and what a mistyped one may have meant.

use std::cmp::Ordering;

/// Orders names as people do: `layer.2` before `layer.10`. Total: names that differ never compare
/// equal.
///
/// ```
/// let mut names = ["layer.10.w", "layer.2.w", "layer.2.b"];
/// names.sort_by(|a, b| safeshard_core::natural_order(a, b));
/// assert_eq!(names, ["layer.2.b", "layer.2.w", "layer.10.w"]);
/// ```
pub fn natural_order(a: &str, b: &str) -> Ordering {
    // Names share long beginnings. The first difference decides, or the number it is in.
    let same = common(a.as_bytes(), b.as_bytes());
    let before = a.as_bytes().get(..same).unwrap_or_default();
    let digits = before.iter().rev().take_while(|byte| byte.is_ascii_digit());
    let start = same - digits.count();
    let mut left = a.as_bytes().get(start..).unwrap_or_default();
    let mut right = b.as_bytes().get(start..).unwrap_or_default();
    while let (Some(x), Some(y)) = (left.first(), right.first()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (number_x, rest_x) = split_number(left);
            let (number_y, rest_y) = split_number(right);
            (left, right) = (rest_x, rest_y);
            number_x
                .len()
                .cmp(&number_y.len())
                .then(number_x.cmp(number_y))
        } else {
            (left, right) = (
                left.get(1..).unwrap_or_default(),
                right.get(1..).unwrap_or_default(),
            );
            x.cmp(y)
        };
        if order.is_ne() {
            return order;
        }
    }
    // What is left decides; where nothing is, leading zeros do.
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// How many bytes are the same at the beginning.
fn common(a: &[u8], b: &[u8]) -> usize {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    let same = 8 * words.take_while(|(x, y)| x == y).count();
    let (a, b) = (a.iter().skip(same), b.iter().skip(same));
    same + a.zip(b).take_while(|(x, y)| x == y).count()
}

/// The digits at the start, without leading zeros, and what follows them.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
    (digits.get(zeros..).unwrap_or_default(), rest)
}

/// Cells of the tables that one search for a similar name may fill: a tenth of a second.
const MOST_WORK: usize = 4 << 20;

/// The name that was probably meant: one that differs by a prefix (`bert.` too much or too little),
/// or the most similar one.
pub(crate) fn closest<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    closest_by(wanted, names, strsim::normalized_damerau_levenshtein)
}

/// As [`closest`], where comparing two names fills a table of as many cells as the product of their
/// lengths.
fn closest_by<'n>(
    wanted: &str,
    names: impl Iterator<Item = &'n str>,
    mut similarity: impl FnMut(&str, &str) -> f64,
) -> Option<&'n str> {
    const SIMILAR: f64 = 0.85;
    let is_suffix = |long: &str, short: &str| {
        long.strip_suffix(short)
            .is_some_and(|prefix| prefix.ends_with('.'))
    };
    let mut best = None;
    let mut best_score = SIMILAR;
    let mut work = 0usize;
    for name in names {
        if is_suffix(name, wanted) || is_suffix(wanted, name) {
            return Some(name);
        }
        let longer = name.len().max(wanted.len());
        let too_different = name.len().abs_diff(wanted.len()) > longer.div_ceil(2);
        work = work.saturating_add(if too_different {
            0
        } else {
            longer.saturating_mul(longer)
        });
        if too_different || work > MOST_WORK {
            continue;
        }
        let score = similarity(wanted, name);
        if score > best_score {
            (best, best_score) = (Some(name), score);
        }
    }
    best
}

/// A few names and how many more there are: `a, b, c and 27 more`.
pub(crate) fn sample<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const SHOWN: usize = 3;
    let mut names = names.peekable();
    let mut text = names.by_ref().take(SHOWN).collect::<Vec<_>>().join(", ");
    if names.peek().is_some() {
        text += &format!(" and {} more", names.count());
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn natural_order_is_total(a in "[ab.0-2]{0,6}", b in "[ab.0-2]{0,6}", c in "[ab.0-2]{0,6}") {
            prop_assert_eq!(natural_order(&a, &b), natural_order(&b, &a).reverse());
            prop_assert_eq!(natural_order(&a, &b).is_eq(), a == b);
            if natural_order(&a, &b).is_le() && natural_order(&b, &c).is_le() {
                prop_assert!(natural_order(&a, &c).is_le());
            }
        }
    }

    #[test]
    fn numbers_count_as_numbers_however_long() {
        let big = "x.123456789012345678901234567890";
        assert!(natural_order("x.9", big).is_lt());
        assert!(natural_order("x.01", "x.1").is_ne());
        assert!(natural_order("layer.2.z", "layer.10.a").is_lt());
    }

    #[test]
    fn a_prefix_too_much_or_too_little_is_recognised() {
        let names = ["embeddings.word.weight", "bert.pooler.bias"];
        let closest = |wanted| closest(wanted, names.into_iter());
        assert_eq!(closest("bert.embeddings.word.weight"), Some(names[0]));
        assert_eq!(closest("pooler.bias"), Some(names[1]));
        assert_eq!(closest("embeddings.word.wieght"), Some(names[0]));
        assert_eq!(closest("something.else"), None);
    }

    #[test]
    fn a_guess_costs_little_whatever_the_names() {
        let search = |wanted: &str, names: &[String]| {
            let mut cells = 0;
            let found = closest_by(wanted, names.iter().map(String::as_str), |a, b| {
                cells += a.len() * b.len();
                strsim::normalized_damerau_levenshtein(a, b)
            });
            assert!(cells <= MOST_WORK, "{cells}");
            found.map(str::to_owned)
        };
        // Comparing two names of 60,000 bytes takes a table of 29 GB.
        let long = ["x", "y"].map(|end| "x".repeat(60_000) + end);
        assert_eq!(search(&"x".repeat(60_000), &long), None);
        // Comparing all of these takes minutes in a debug build.
        let many: Vec<_> = (0..200_000)
            .map(|i| format!("model.layers.{i}.mlp.experts.weight"))
            .collect();
        let found = search("model.layers.7.mlp.experts.wieght", &many);
        assert_eq!(found.as_ref(), many.get(7));
    }
}
