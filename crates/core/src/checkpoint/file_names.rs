//! The names of a checkpoint's files: one grammar, which parses and prints.
//!
//! | | plain | variant `fp16` |
//! |-|-------|----------------|
//! | single file | `model.safetensors` | `model.fp16.safetensors` |
//! | index | `model.safetensors.index.json` | `model.safetensors.index.fp16.json`, and two older spellings |
//! | shard | `model-00001-of-00003.safetensors` | `model.fp16-00001-of-00003.safetensors` |
//! | its second generation | `model-g2-00001-of-00003.safetensors` | `model.fp16-g2-00001-of-00003.safetensors` |
//!
//! A name only ever tells what a file may be: which tensors it holds, and whether it counts, is said by
//! headers and indexes.

use super::shard_name;
use crate::error::{Code, Error, Result};

/// What every file with tensors ends in.
pub(crate) const END: &str = ".safetensors";

/// The names that Hugging Face's libraries give, the one that wins first.
pub(crate) const STEMS: [&str; 3] = ["model", "diffusion_pytorch_model", "adapter_model"];

/// What the files of one checkpoint are called: a stem, and perhaps a variant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Names {
    stem: String,
    variant: Option<String>,
}

/// The name of a file, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileName {
    /// Of which checkpoint.
    pub(crate) names: Names,
    pub(crate) role: Role,
}

/// What a file is for its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Single,
    Index,
    Shard(Place),
}

/// Which of the shards a file is; numbers and generations begin at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Where another checkpoint holds the usual names, the next one gets those of the next generation.
    pub(crate) generation: u32,
    pub(crate) of: usize,
    pub(crate) number: usize,
}

impl Names {
    /// The names of this stem and variant.
    ///
    /// # Errors
    /// [`Code::CheckpointName`] for what leads elsewhere or hides the files on any platform, and for
    /// what our own reader would take for something else.
    pub(crate) fn new(stem: &str, variant: Option<&str>) -> Result<Self> {
        Self::unchecked(stem, variant).checked()
    }

    /// The same names, if files may be called so.
    ///
    /// # Errors
    /// As [`Names::new`].
    pub(crate) fn checked(self) -> Result<Self> {
        match self.refusal() {
            None => Ok(self),
            Some(reason) => Err(Error::new(Code::CheckpointName)
                .found(format_args!("{:?}: {reason}", self.single()))),
        }
    }

    /// The names under which files are looked for that are there.
    pub(crate) fn unchecked(stem: &str, variant: Option<&str>) -> Self {
        Self {
            stem: stem.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Of what comes before the end or the number: a dot parts the variant from a stem that is known.
    fn of_dotted(dotted: &str) -> Self {
        match dotted.split_once('.') {
            Some((stem, variant)) if STEMS.contains(&stem) => Self::unchecked(stem, Some(variant)),
            _ => Self::unchecked(dotted, None),
        }
    }

    fn refusal(&self) -> Option<&'static str> {
        /// With an end, a number and the mark of a file that is not finished, at most 255 bytes, as
        /// file systems allow.
        const LONGEST: usize = 160;
        let single = self.single();
        let variant = self.variant.as_deref();
        let reason = if self.stem.is_empty() || variant == Some("") {
            "a part of it is empty"
        } else if single.starts_with('.') {
            "a hidden file is one that is not finished"
        } else if single.contains('/') {
            "it leads into another folder"
        } else if single.matches(END).count() > 1 {
            "the end is added to the name"
        } else if is_shard(&single) {
            "it looks like one of several shards"
        } else if single.len() > LONGEST {
            "it is too long"
        } else {
            return shard_name::refusal(&single);
        };
        Some(reason)
    }

    /// The stem and the variant.
    pub(crate) fn into_parts(self) -> (String, Option<String>) {
        (self.stem, self.variant)
    }

    /// `model.safetensors`, `model.fp16.safetensors`.
    pub(crate) fn single(&self) -> String {
        format!("{}{END}", self.dotted())
    }

    /// `model.safetensors.index.json`, `model.safetensors.index.fp16.json`.
    pub(crate) fn index(&self) -> String {
        match &self.variant {
            None => format!("{}{END}.index.json", self.stem),
            Some(variant) => format!("{}{END}.index.{variant}.json", self.stem),
        }
    }

    /// Every spelling of the index, the one that is written first: transformers and new diffusers; old
    /// diffusers; the plain reading.
    pub(crate) fn indexes(&self) -> Vec<String> {
        let mut names = vec![self.index()];
        if let Some(variant) = &self.variant {
            names.push(format!("{}{END}.{variant}.index.json", self.stem));
            names.push(format!("{}.index.json", self.single()));
        }
        names
    }

    /// `model-00001-of-00003.safetensors`; `model-g2-00001-of-00003.safetensors`.
    pub(crate) fn shard(&self, place: Place) -> String {
        let generation = match place.generation {
            ..=1 => String::new(),
            later => format!("-g{later}"),
        };
        let Place { of, number, .. } = place;
        format!("{}{generation}-{number:05}-of-{of:05}{END}", self.dotted())
    }

    /// How the names of all its shards begin.
    pub(crate) fn shard_prefix(&self) -> String {
        format!("{}-", self.dotted())
    }

    fn dotted(&self) -> String {
        match &self.variant {
            None => self.stem.clone(),
            Some(variant) => format!("{}.{variant}", self.stem),
        }
    }
}

impl FileName {
    /// Takes a name apart; `None` for one that no file of a checkpoint has.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if let Some(names) = names_of_index(name) {
            return Some(Self {
                names,
                role: Role::Index,
            });
        }
        let dotted = name.strip_suffix(END)?;
        let (dotted, role) = match place_of(dotted) {
            Some((dotted, place)) => (dotted, Role::Shard(place)),
            None => (dotted, Role::Single),
        };
        let names = Names::of_dotted(dotted);
        Some(Self { names, role })
    }
}

/// The single file of the same checkpoint, if a name is that of an index: `model.fp16.safetensors`
/// for `model.safetensors.index.fp16.json` and for the two other spellings of the variant.
pub(crate) fn index_of(name: &str) -> Option<String> {
    names_of_index(name).map(|names| names.single())
}

/// Whether a name looks like that of a shard: `…-00001-of-00003….safetensors`. Only ever used to
/// tell what is missing, never to find a tensor.
pub(crate) fn is_shard(name: &str) -> bool {
    let Some((before, after)) = name.rsplit_once("-of-") else {
        return false;
    };
    let ends_in_digit = before.ends_with(|last: char| last.is_ascii_digit());
    ends_in_digit && after.starts_with(|first: char| first.is_ascii_digit())
}

/// Whether a name is one that torch's distributed checkpoints give: `shard-00001-model-…`.
pub(crate) fn is_rank_file(name: &str) -> bool {
    let rank = name.strip_prefix("shard-");
    let rank = rank.and_then(|rest| rest.split('-').next());
    rank.is_some_and(|rank| rank.len() == 5 && rank.bytes().all(|byte| byte.is_ascii_digit()))
}

fn names_of_index(name: &str) -> Option<Names> {
    let (stem, rest) = name.strip_suffix(".json")?.split_once(".safetensors.")?;
    if rest == "index" {
        // A dot is left to the stem, so that the same spelling is printed again.
        return Some(Names::unchecked(stem, None));
    }
    let new = rest.strip_prefix("index.");
    let variant = new.or_else(|| rest.strip_suffix(".index"))?;
    Some(Names::unchecked(stem, Some(variant)))
}

/// Cuts `-g2-00001-of-00003` off.
fn place_of(dotted: &str) -> Option<(&str, Place)> {
    let (rest, of) = dotted.rsplit_once("-of-")?;
    let (rest, number) = rest.rsplit_once('-')?;
    let generation = rest
        .rsplit_once("-g")
        .and_then(|(stem, generation)| Some((stem, digits(generation)?.parse().ok()?)));
    let (stem, generation) = generation.unwrap_or((rest, 1));
    let place = Place {
        generation,
        of: digits(of)?.parse().ok()?,
        number: digits(number)?.parse().ok()?,
    };
    Some((stem, place))
}

fn digits(text: &str) -> Option<&str> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn place(number: usize, of: usize, generation: u32) -> Place {
        Place {
            generation,
            of,
            number,
        }
    }

    #[rstest]
    #[case(None, ["model.safetensors", "model.safetensors.index.json"])]
    #[case(Some("fp16"), ["model.fp16.safetensors", "model.safetensors.index.fp16.json"])]
    fn names_are_transformers_names(#[case] variant: Option<&str>, #[case] expected: [&str; 2]) {
        let names = Names::new("model", variant).unwrap();
        assert_eq!([names.single(), names.index()], expected);
    }

    #[rstest]
    #[case(None, 1, 2, 1, "model-00001-of-00002.safetensors")]
    #[case(None, 3, 3, 2, "model-g2-00003-of-00003.safetensors")]
    #[case(Some("fp16"), 1, 12, 1, "model.fp16-00001-of-00012.safetensors")]
    #[case(Some("fp16"), 1, 12, 10, "model.fp16-g10-00001-of-00012.safetensors")]
    #[case(None, 100_001, 123_456, 1, "model-100001-of-123456.safetensors")]
    fn shards_have_names_of_their_own(
        #[case] variant: Option<&str>,
        #[case] number: usize,
        #[case] of: usize,
        #[case] generation: u32,
        #[case] expected: &str,
    ) {
        let names = Names::new("model", variant).unwrap();
        let name = names.shard(place(number, of, generation));
        assert_eq!(name, expected);
        assert!(is_shard(&name));
        assert_eq!(shard_name::refusal(&name), None);
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(
            stem in "(model|adapter_model|[a-z]{1,6}(-g[a-z])?)",
            variant in proptest::option::of("[a-z][a-z0-9]{0,5}"),
            number in 1..200_000usize,
            of in 1..200_000usize,
            generation in 1..30u32,
        ) {
            // Another stem says no variant but in the index's own spelling.
            let is_known = STEMS.contains(&stem.as_str());
            let names = Names::new(&stem, variant.as_deref().filter(|_| is_known)).unwrap();
            let parsed = |name: String| FileName::parse(&name).unwrap();
            let as_role = |role| FileName { names: names.clone(), role };
            prop_assert_eq!(parsed(names.single()), as_role(Role::Single));
            prop_assert_eq!(parsed(names.index()), as_role(Role::Index));
            for index in names.indexes() {
                prop_assert_eq!(index_of(&index).unwrap(), names.single());
            }
            let place = place(number, of, generation);
            let shard = names.shard(place);
            prop_assert!(shard.starts_with(&names.shard_prefix()));
            prop_assert_eq!(parsed(shard), as_role(Role::Shard(place)));
        }
    }

    #[rstest]
    #[case("model.safetensors.index.json", "model.safetensors")]
    #[case("model.safetensors.index.fp16.json", "model.fp16.safetensors")]
    #[case("model.safetensors.fp16.index.json", "model.fp16.safetensors")]
    #[case("model.fp16.safetensors.index.json", "model.fp16.safetensors")]
    #[case("my.own.safetensors.index.json", "my.own.safetensors")]
    fn every_spelling_of_an_index_leads_to_its_single_file(
        #[case] index: &str,
        #[case] single: &str,
    ) {
        assert_eq!(index_of(index).unwrap(), single);
    }

    #[rstest]
    #[case("config.json")]
    #[case("model.bin")]
    #[case("model.safetensors.json")]
    #[case("pytorch_model.bin.index.json")]
    fn other_names_are_no_checkpoints(#[case] name: &str) {
        assert_eq!(FileName::parse(name), None);
        assert_eq!(index_of(name), None);
    }

    #[rstest]
    #[case("model-+1-of-2.safetensors")]
    #[case("model-1-of-.safetensors")]
    #[case("model-00001-of-00002-x.safetensors")]
    #[case("-of-.safetensors")]
    fn what_is_not_numbered_is_a_single_file(#[case] name: &str) {
        assert_eq!(FileName::parse(name).unwrap().role, Role::Single);
    }

    #[rstest]
    #[case("", None)]
    #[case("model", Some(""))]
    #[case(".model", None)]
    #[case("sub/model", None)]
    #[case("model", Some("a/../../b"))]
    #[case("/model", None)]
    #[case("..", None)]
    #[case("model.safetensors", None)]
    #[case("model", Some("safetensors.index"))]
    #[case("model-00001-of-00002", None)]
    #[case("model", Some("1-of-2"))]
    #[case("a\\b", None)]
    #[case("c:model", None)]
    #[case("model\n", None)]
    #[case("nul", None)]
    #[case("model", Some("a*"))]
    #[case(" model", None)]
    fn names_that_lead_elsewhere_or_mislead_are_refused(
        #[case] stem: &str,
        #[case] variant: Option<&str>,
    ) {
        let error = Names::new(stem, variant).unwrap_err();
        assert_eq!(error.code(), Code::CheckpointName, "{stem:?} {variant:?}");
    }

    #[test]
    fn the_longest_name_leaves_room_for_the_mark_of_an_unfinished_file() {
        let stem = "x".repeat(148);
        let names = Names::new(&stem, None).unwrap();
        let longest = names.shard(place(usize::MAX, usize::MAX, u32::MAX));
        assert!(
            format!(".{longest}.0123456789abcdef.partial").len() <= 255,
            "{}",
            longest.len()
        );
        assert!(Names::new(&(stem + "x"), None).is_err());
    }
}
