//! Sizes as people write them: `5GB`, `500 MiB`, `1.5GB`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Code, Error, Result};

/// How many bytes of tensors a shard holds, at most; never zero.
///
/// Written as a number and a unit in either case: `KB`, `MB`, `GB` and `TB` are powers of ten, `KiB`,
/// `MiB`, `GiB` and `TiB` powers of two, `B` or nothing means bytes. Nothing is rounded but a last
/// part of a byte, which is dropped.
///
/// ```
/// use safeshard_core::ShardSize;
///
/// assert_eq!("1.5 GB".parse::<ShardSize>()?.bytes(), 1_500_000_000);
/// assert_eq!("500mib".parse::<ShardSize>()?.bytes(), 500 << 20);
/// assert_eq!("4096".parse::<ShardSize>()?, ShardSize::new(4096)?);
/// assert!("0GB".parse::<ShardSize>().is_err());
/// assert!("5 gigabits".parse::<ShardSize>().is_err());
/// # Ok::<(), safeshard_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardSize(u64);

/// In lower case, the larger units of a kind first.
const UNITS: [(&str, u64); 9] = [
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("b", 1),
];

impl ShardSize {
    /// Everything in one file.
    pub const UNLIMITED: Self = Self(u64::MAX);

    /// So many bytes.
    ///
    /// # Errors
    /// [`Code::ShardSize`] for zero.
    pub fn new(bytes: u64) -> Result<Self> {
        match bytes {
            0 => Err(Error::new(Code::ShardSize)
                .expected("at least one byte")
                .found("0")),
            bytes => Ok(Self(bytes)),
        }
    }

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Default for ShardSize {
    /// 5 GB, as huggingface_hub.
    fn default() -> Self {
        Self(5_000_000_000)
    }
}

impl FromStr for ShardSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text)
            .and_then(|bytes| Self::new(bytes).ok())
            .ok_or_else(|| Error::new(Code::ShardSize).found(format_args!("{text:?}")))
    }
}

/// The number of bytes; zero is one. `None` for anything that is not a size, or not one that 64 bits
/// can count.
fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit_at = text.find(|char: char| !(char.is_ascii_digit() || char == '.'));
    let (number, unit) = text.split_at(unit_at.unwrap_or(text.len()));
    let bytes_each = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let whole = whole.parse::<u64>().ok()?.checked_mul(bytes_each)?;
    // Of a fraction with so many digits that this does not fit, nobody can mean them all.
    let places = 10u128.checked_pow(u32::try_from(part.len()).ok()?)?;
    let part = part.parse::<u128>().ok()?;
    let part = part.checked_mul(u128::from(bytes_each))? / places;
    whole.checked_add(u64::try_from(part).ok()?)
}

impl fmt::Display for ShardSize {
    /// In the largest unit that needs no fraction: `5GB`, `512MiB`, `1234B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS
            .iter()
            .filter(|(_, bytes)| self.0.is_multiple_of(*bytes));
        let (unit, bytes) = whole.max_by_key(|(_, bytes)| *bytes).unwrap_or(&("b", 1));
        let unit = unit.to_ascii_uppercase().replace('I', "i");
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("5GB", 5_000_000_000)]
    #[case("5 GB", 5_000_000_000)]
    #[case("5gb", 5_000_000_000)]
    #[case("5Gb", 5_000_000_000)]
    #[case("500MB", 500_000_000)]
    #[case("1.5GB", 1_500_000_000)]
    #[case("5TB", 5_000_000_000_000)]
    #[case("7kB", 7_000)]
    #[case("5GiB", 5 << 30)]
    #[case("5gib", 5 << 30)]
    #[case("1.5 KiB", 1536)]
    #[case("3MiB", 3 << 20)]
    #[case("2TiB", 2 << 40)]
    #[case("12345", 12345)]
    #[case("12345 B", 12345)]
    #[case("  5MB\n", 5_000_000)]
    #[case("007KB", 7_000)]
    #[case("18446744073709551615", u64::MAX)]
    #[case("18446744.073709551615TB", u64::MAX)]
    // In binary floats, 1004.9999999999999 and 4349999.9999999995.
    #[case("1.005KB", 1005)]
    #[case("4.35MB", 4_350_000)]
    #[case("9007199254.740993GB", 9_007_199_254_740_993_000)]
    // At most a tenth of a KiB is at most 102 bytes.
    #[case("0.1KiB", 102)]
    #[case("1.9", 1)]
    fn sizes_are_exact(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(text.parse::<ShardSize>().unwrap().bytes(), bytes);
    }

    #[test]
    fn anything_else_is_a_usage_error_that_names_it() {
        for text in [
            "",
            " ",
            "0",
            "0GB",
            "0.0",
            "0.4B",
            "-1",
            "-5GB",
            "+5GB",
            "nan",
            "NaNGB",
            "inf",
            "infGB",
            "Infinity",
            "GB",
            "5G",
            "5XB",
            "5PB",
            "5GBB",
            "5GB 3MB",
            "5Gbit",
            "5 gigabits",
            "5 G B",
            "1e3KB",
            "1_000KB",
            "1,5GB",
            ".5GB",
            "5.GB",
            ".",
            "1.2.3GB",
            "0x10",
            "٥GB",
            "５GB",
            "5ＧＢ",
            "18446744073709551616",
            "18446744.073709551616TB",
            "99999999TB",
            "99999999999999999999999999999999999999999999",
            "0.5000000000000000000000000000000000000000000000GB",
        ] {
            let error = text.parse::<ShardSize>().unwrap_err();
            assert_eq!(error.code(), Code::ShardSize);
            assert_eq!(error.kind(), crate::error::Kind::Usage);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[rstest]
    #[case(5_000_000_000, "5GB")]
    #[case(1 << 30, "1GiB")]
    #[case(1536, "1536B")]
    #[case(1_500_000, "1500KB")]
    #[case(1, "1B")]
    fn sizes_are_shown_as_they_are_written(#[case] bytes: u64, #[case] text: &str) {
        assert_eq!(ShardSize::new(bytes).unwrap().to_string(), text);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(bytes in 1u64.., shift in 0u32..64, unit in 0..UNITS.len()) {
            for bytes in [bytes >> shift, (bytes >> shift).saturating_mul(UNITS[unit].1)] {
                let Ok(size) = ShardSize::new(bytes) else { continue };
                prop_assert_eq!(size.to_string().parse::<ShardSize>().unwrap(), size);
            }
        }

        /// A fraction is a number of units and a shift of the point: in thousandths, all is whole.
        #[test]
        fn fractions_count_exactly(thousandths in 1u64..1 << 40, unit in 0..4usize) {
            let (name, bytes) = UNITS[unit];
            let text = format!("{}.{:03}{name}", thousandths / 1000, thousandths % 1000);
            let exact = (thousandths as u128 * bytes as u128 / 1000) as u64;
            let parsed = text.parse::<ShardSize>().ok().map(ShardSize::bytes);
            let fits = thousandths as u128 * bytes as u128 / 1000 <= u64::MAX as u128;
            prop_assert_eq!(parsed, fits.then_some(exact));
        }
    }
}
