//! What a new file begins with: its tensors in order, the JSON that says where they lie, padding.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::header::{Header, HeaderOptions, Profile};
use super::layout;
use crate::{Code, Dtype, Error, Result};

const METADATA_KEY: &str = "__metadata__";

/// At which multiple the data section of a file begins; reached by spaces behind the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DataAlignment {
    /// 8 bytes, as the reference writes.
    #[default]
    Word,
    /// 64 bytes: a cache line, and the widest vector registers.
    CacheLine,
    /// 4096 bytes: a page, for mapping and for direct reads.
    Page,
}

impl DataAlignment {
    /// The widest one that all of these have, and not by chance: some needed more bytes of padding than
    /// the next narrower one takes.
    pub(crate) fn of<'h>(headers: impl Iterator<Item = &'h Header> + Clone) -> Self {
        let shows = |&(wide, narrow): &(Self, Self)| {
            let (wide, narrow) = (wide.bytes() as u64, narrow.bytes() as u64);
            let mut aligned = headers.clone();
            aligned.all(|header| header.data_start().is_multiple_of(wide))
                && headers.clone().any(|header| header.padding() >= narrow)
        };
        let wider = [(Self::Page, Self::CacheLine), (Self::CacheLine, Self::Word)];
        let found = wider.into_iter().find(shows);
        found.map_or(Self::default(), |(wide, _)| wide)
    }

    fn bytes(self) -> usize {
        match self {
            Self::Word => 8,
            Self::CacheLine => 64,
            Self::Page => 4096,
        }
    }
}

/// A tensor of a file that is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewTensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [u64],
}

impl NewTensor<'_> {
    /// Bytes of its data.
    ///
    /// # Errors
    /// `shape-overflow`, `sub-byte-remainder`.
    pub(crate) fn byte_len(&self) -> Result<u64> {
        layout::byte_len(self.dtype, self.shape, layout::elements(self.shape))
    }
}

/// What a new file begins with, and what has to follow: for the same input the very bytes that the
/// reference writes, except that metadata is sorted, where the reference's order is random.
#[derive(Debug)]
pub(crate) struct NewHeader {
    bytes: Vec<u8>,
    order: Vec<usize>,
    data_len: u64,
}

impl NewHeader {
    /// Lays out a file of these tensors. What our own reader would refuse is refused here.
    pub(crate) fn new(
        tensors: &[NewTensor<'_>],
        metadata: &BTreeMap<String, String>,
        alignment: DataAlignment,
    ) -> Result<Self> {
        check_names(tensors)?;
        let mut ordered: Vec<_> = tensors.iter().enumerate().collect();
        // By rank, so that every tensor begins at a multiple of its elements' size.
        ordered.sort_unstable_by_key(|(_, tensor)| (std::cmp::Reverse(tensor.dtype), tensor.name));

        let mut members = Vec::with_capacity(tensors.len() + 1);
        if !metadata.is_empty() {
            members.push(format!("\"{METADATA_KEY}\":{}", json!(metadata)));
        }
        let mut data_len = 0;
        for (_, tensor) in &ordered {
            let end = end_of(tensor, data_len).map_err(|error| error.in_tensor(tensor.name))?;
            let entry = json!({
                "dtype": tensor.dtype.name(),
                "shape": tensor.shape,
                "data_offsets": [data_len, end],
            });
            members.push(format!("{}:{entry}", Value::from(tensor.name)));
            data_len = end;
        }
        let bytes = prefixed(&format!("{{{}}}", members.join(",")), alignment);
        check_readable(&bytes, data_len)?;
        Ok(Self {
            bytes,
            order: ordered.iter().map(|&(position, _)| position).collect(),
            data_len,
        })
    }

    /// The header's length, the header and its padding.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Positions of the tensors as they were given, in the order in which their data follows.
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    /// Bytes of the whole file.
    pub(crate) fn file_len(&self) -> u64 {
        self.bytes.len() as u64 + self.data_len
    }
}

fn check_names(tensors: &[NewTensor<'_>]) -> Result<()> {
    let mut seen = HashSet::with_capacity(tensors.len());
    for tensor in tensors {
        if tensor.name == METADATA_KEY {
            return Err(Error::new(Code::ReservedName).in_tensor(tensor.name));
        }
        if !seen.insert(tensor.name) {
            return Err(name_twice(tensor.name));
        }
    }
    Ok(())
}

/// The error of two tensors with one name, which no reader could tell apart.
pub(crate) fn name_twice(name: &str) -> Error {
    Error::new(Code::NameCollision)
        .in_tensor(name)
        .help("give every tensor a name of its own")
}

fn end_of(tensor: &NewTensor<'_>, start: u64) -> Result<u64> {
    let end = start.checked_add(tensor.byte_len()?);
    end.ok_or_else(|| Error::new(Code::OffsetsOverflow))
}

/// A header behind its length, padded so that what follows begins at a multiple of the alignment.
fn prefixed(json: &str, alignment: DataAlignment) -> Vec<u8> {
    let data_start = (size_of::<u64>() + json.len()).next_multiple_of(alignment.bytes());
    let header_len = (data_start - size_of::<u64>()) as u64;
    let mut bytes = Vec::with_capacity(data_start);
    bytes.extend_from_slice(&header_len.to_le_bytes());
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(data_start, b' ');
    bytes
}

/// Checks that whoever opens the file with default limits can read it, by reading it.
fn check_readable(bytes: &[u8], data_len: u64) -> Result<()> {
    let file_len = data_len.checked_add(bytes.len() as u64);
    let file_len = file_len.ok_or_else(|| Error::new(Code::OffsetsOverflow))?;
    let options = HeaderOptions {
        profile: Profile::Strict,
        ..HeaderOptions::default()
    };
    Header::parse(bytes, Some(file_len), &options)
        .map(drop)
        .map_err(|error| error.help("readers would refuse the file: it is not written"))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;
    use rstest::rstest;
    use safetensors::tensor::TensorView;
    use serde_json::Map;

    use super::*;

    type Tensors = Vec<(String, Dtype, Vec<u64>)>;
    type Metadata = BTreeMap<String, String>;

    /// A file of the reference with its metadata sorted; what it writes is in random order.
    pub(crate) fn with_sorted_metadata(file: &[u8]) -> Vec<u8> {
        let (len, rest) = file.split_first_chunk().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
        let mut json: Map<String, Value> = serde_json::from_slice(header).unwrap();
        match json.get_mut(METADATA_KEY) {
            Some(Value::Object(metadata)) if metadata.len() > 1 => metadata.sort_keys(),
            _ => return file.to_vec(),
        }
        let mut sorted = Value::Object(json).to_string().into_bytes();
        sorted.resize(header.len(), b' ');
        [len, sorted.as_slice(), data].concat()
    }

    fn header(
        tensors: &Tensors,
        metadata: &Metadata,
        alignment: DataAlignment,
    ) -> Result<NewHeader> {
        let new = tensors.iter().map(|(name, dtype, shape)| NewTensor {
            name,
            dtype: *dtype,
            shape,
        });
        NewHeader::new(&new.collect::<Vec<_>>(), metadata, alignment)
    }

    /// Bytes that tell the tensors and their positions in them apart.
    fn data(tensors: &Tensors) -> Vec<Vec<u8>> {
        let bytes = |(number, (_, dtype, shape)): (usize, &(String, Dtype, Vec<u64>))| {
            let len = dtype.byte_len(shape).unwrap() as usize;
            (0..len).map(|at| (31 * number + at) as u8).collect()
        };
        tensors.iter().enumerate().map(bytes).collect()
    }

    fn ours(tensors: &Tensors, metadata: &Metadata, alignment: DataAlignment) -> Vec<u8> {
        let header = header(tensors, metadata, alignment).unwrap();
        let data = data(tensors);
        let data = header.order().iter().flat_map(|&position| &data[position]);
        let file: Vec<u8> = header.bytes().iter().chain(data).copied().collect();
        assert_eq!(header.file_len(), file.len() as u64);
        file
    }

    fn theirs(tensors: &Tensors, metadata: &Metadata) -> Vec<u8> {
        let data = data(tensors);
        let views = tensors.iter().zip(&data);
        let views = views.map(|((name, dtype, shape), data)| {
            let dtype = serde_json::from_value(dtype.name().into()).unwrap();
            let shape = shape.iter().map(|&dim| dim as usize).collect();
            (name, TensorView::new(dtype, shape, data).unwrap())
        });
        let metadata = metadata.clone().into_iter().collect();
        // Of no tensors and an empty map, the reference writes `{}"__metadata__":{}`.
        let metadata =
            Some(metadata).filter(|map: &std::collections::HashMap<_, _>| !map.is_empty());
        with_sorted_metadata(&safetensors::serialize(views, metadata).unwrap())
    }

    const NAMES: [&str; 12] = [
        "",
        "w",
        "a.10.w",
        "é",
        "😀",
        "\u{ffff}",
        "\"\\/",
        "\n\r\t\u{8}\u{c}",
        "\0\u{1f}",
        "\u{7f}",
        "\u{80}\u{2028}",
        "{}:,",
    ];

    #[test]
    fn every_dtype_is_written_as_the_reference_writes_it() {
        let mut tensors = Tensors::new();
        for &dtype in Dtype::ALL {
            let scalar = dtype.size().is_some().then(Vec::new);
            let shapes = [vec![2, 4], vec![0], vec![3, 0, 1], vec![8]];
            for (number, shape) in shapes.into_iter().chain(scalar).enumerate() {
                let name = NAMES[(tensors.len() * 5) % NAMES.len()];
                tensors.push((
                    format!("{name}{}", dtype as usize * 10 + number),
                    dtype,
                    shape,
                ));
            }
        }
        let format = Metadata::from([("format".to_owned(), "pt".to_owned())]);
        for metadata in [Metadata::new(), format] {
            let file = ours(&tensors, &metadata, DataAlignment::Word);
            assert_eq!(file, theirs(&tensors, &metadata));
            tensors.reverse();
            let again = ours(&tensors, &metadata, DataAlignment::Word);
            assert_eq!(again[..100], file[..100], "the order given does not count");
            assert_eq!(again, theirs(&tensors, &metadata));
        }
    }

    #[test]
    fn a_file_without_tensors_is_one_that_can_be_read() {
        let file = ours(&Vec::new(), &Metadata::new(), DataAlignment::Word);
        assert_eq!(file, b"\x08\0\0\0\0\0\0\0{}      ");
        let metadata = Metadata::from([("a".to_owned(), "b".to_owned())]);
        let file = ours(&Vec::new(), &metadata, DataAlignment::Word);
        assert_eq!(file, theirs(&Vec::new(), &metadata));
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![select(&NAMES[..]).prop_map(str::to_owned), any::<String>()]
    }

    fn tensors() -> impl Strategy<Value = Tensors> {
        let tensor = (select(Dtype::ALL), prop::collection::vec(0..4u64, 0..4));
        let tensor = tensor.prop_map(|(dtype, mut shape)| {
            if dtype.size().is_none() {
                shape.push(4); // whole bytes for any number of bits
            }
            (dtype, shape)
        });
        let tensors = prop::collection::hash_map(text(), tensor, 0..20);
        tensors.prop_map(|tensors| {
            let tensors = tensors.into_iter();
            tensors
                .map(|(name, (dtype, shape))| (name, dtype, shape))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn any_file_is_the_references(
            tensors in tensors(),
            metadata in prop::collection::btree_map(text(), text(), 0..4),
        ) {
            let file = ours(&tensors, &metadata, DataAlignment::Word);
            prop_assert_eq!(&file, &theirs(&tensors, &metadata));
            // A wider alignment adds spaces and nothing else.
            for (alignment, bytes) in [(DataAlignment::CacheLine, 64), (DataAlignment::Page, 4096)] {
                let header = header(&tensors, &metadata, alignment).unwrap();
                let (len, json) = header.bytes().split_first_chunk().unwrap();
                prop_assert_eq!(header.bytes().len() % bytes, 0);
                prop_assert_eq!(u64::from_le_bytes(*len), json.len() as u64);
                let words = |json: &[u8]| json.trim_ascii_end().to_vec();
                let narrow = header_of(&file);
                prop_assert_eq!(words(json), words(narrow));
                prop_assert!(json.len() < narrow.len() + bytes);
            }
        }
    }

    fn header_of(file: &[u8]) -> &[u8] {
        let (len, rest) = file.split_first_chunk().unwrap();
        &rest[..u64::from_le_bytes(*len) as usize]
    }

    #[rstest]
    #[case::reserved(&[("__metadata__", Dtype::U8, &[1][..])], Code::ReservedName)]
    #[case::twice(&[("a", Dtype::U8, &[1][..]), ("a", Dtype::I64, &[])], Code::NameCollision)]
    #[case::elements(&[("a", Dtype::U8, &[1 << 32, 1 << 32][..])], Code::ShapeOverflow)]
    #[case::bits(&[("a", Dtype::F64, &[1 << 60][..])], Code::ShapeOverflow)]
    #[case::part_of_a_byte(&[("a", Dtype::F4, &[3][..])], Code::SubByteRemainder)]
    #[case::rank(&[("a", Dtype::U8, &[1; 65][..])], Code::LimitRank)]
    fn what_no_reader_could_read_is_not_written(
        #[case] tensors: &[(&str, Dtype, &[u64])],
        #[case] code: Code,
    ) {
        let owned = tensors
            .iter()
            .map(|&(name, dtype, shape)| (name.to_owned(), dtype, shape.to_vec()));
        let error = header(&owned.collect(), &Metadata::new(), DataAlignment::Word).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(error.tensor(), Some(tensors[0].0));
    }

    #[test]
    fn files_are_no_longer_than_64_bits_can_count() {
        let largest = u64::MAX / 8;
        let file = |count: usize| {
            let tensors = (0..count).map(|number| (number.to_string(), Dtype::U8, vec![largest]));
            header(&tensors.collect(), &Metadata::new(), DataAlignment::Word)
        };
        assert_eq!(file(7).unwrap().data_len, 7 * largest);
        // Eight leave no room for the header.
        for count in [8, 9] {
            assert_eq!(file(count).unwrap_err().code(), Code::OffsetsOverflow);
        }
    }

    #[test]
    fn names_are_as_long_as_our_reader_takes_them() {
        let named = |len: usize| {
            let tensors = vec![("x".repeat(len), Dtype::U8, vec![1])];
            header(&tensors, &Metadata::new(), DataAlignment::Word)
        };
        assert!(named(1 << 16).is_ok());
        assert_eq!(named((1 << 16) + 1).unwrap_err().code(), Code::LimitName);
    }
}
