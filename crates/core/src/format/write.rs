//! What a new file begins with: its tensors in order, the JSON that says where they lie, padding.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::to_writer;

use super::header::{Header, HeaderOptions, Profile};
use super::layout;
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;

const METADATA_KEY: &str = "__metadata__";

/// At which multiple the data section of a file begins; reached by spaces behind the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// How many elements it has; `None` where 64 bits cannot count them.
    pub(crate) fn elements(&self) -> Option<u64> {
        layout::elements(self.shape)
    }

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
    order: Vec<u32>,
    data_len: u64,
}

impl NewHeader {
    /// Lays out a file of so many tensors, which `tensor` describes: fewer than 2^32, whose names differ.
    /// What our own reader would refuse is refused here.
    ///
    /// Memory: the text once, and 4 bytes a tensor; 24 more before there is a text.
    pub(crate) fn new<'t>(
        count: usize,
        tensor: impl Fn(usize) -> Option<NewTensor<'t>>,
        metadata: &BTreeMap<impl AsRef<str>, impl AsRef<str>>,
        alignment: DataAlignment,
    ) -> Result<Self> {
        let order = in_order(count, &tensor)?;
        let ordered = || order.iter().filter_map(|&at| tensor(at as usize));
        let data_len = ordered().try_fold(0, |start, tensor| {
            end_of(&tensor, start).map_err(|error| error.in_tensor(tensor.name))
        })?;
        let mut len = Len(0);
        write_json(&mut len, ordered(), metadata)?;
        let data_start = (size_of::<u64>() + len.0).next_multiple_of(alignment.bytes());
        let mut bytes = Vec::with_capacity(data_start);
        bytes.extend_from_slice(&((data_start - size_of::<u64>()) as u64).to_le_bytes());
        write_json(&mut bytes, ordered(), metadata)?;
        bytes.resize(data_start, b' ');
        check_readable(&bytes, data_len)?;
        Ok(Self {
            bytes,
            order,
            data_len,
        })
    }

    /// The header's length, the header and its padding.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Positions of the tensors as they were given, in the order in which their data follows.
    pub(crate) fn order(&self) -> &[u32] {
        &self.order
    }

    /// Bytes of the whole file.
    pub(crate) fn file_len(&self) -> u64 {
        self.bytes.len() as u64 + self.data_len
    }
}

/// Positions of tensors in the order of their data.
fn in_order<'t>(count: usize, tensor: impl Fn(usize) -> Option<NewTensor<'t>>) -> Result<Vec<u32>> {
    let described = (0..count).filter_map(|at| Some((tensor(at)?, at as u32)));
    // By rank, so that every tensor begins at a multiple of its elements' size.
    let keys = described.map(|(tensor, at)| (Reverse(tensor.dtype), tensor.name, at));
    let mut keys: Vec<_> = keys.collect();
    if keys.iter().any(|&(_, name, _)| name == METADATA_KEY) {
        return Err(Error::new(Code::ReservedName).in_tensor(METADATA_KEY));
    }
    keys.sort_unstable();
    // Not in their place, which is larger.
    let mut order = Vec::with_capacity(keys.len());
    order.extend(keys.iter().map(|&(.., at)| at));
    Ok(order)
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

/// The JSON of tensors in the order of their data, as `serde_json` spells it, which the reference uses.
fn write_json<'t>(
    mut json: impl Write,
    tensors: impl Iterator<Item = NewTensor<'t>>,
    metadata: &BTreeMap<impl AsRef<str>, impl AsRef<str>>,
) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut before = "{";
        if !metadata.is_empty() {
            write!(json, "{{\"{METADATA_KEY}\":")?;
            for (key, value) in metadata {
                json.write_all(before.as_bytes())?;
                to_writer(&mut json, key.as_ref())?;
                json.write_all(b":")?;
                to_writer(&mut json, value.as_ref())?;
                before = ",";
            }
            json.write_all(b"}")?;
            before = ",";
        }
        let mut start = 0;
        for tensor in tensors {
            json.write_all(before.as_bytes())?;
            to_writer(&mut json, tensor.name)?;
            json.write_all(b":{\"dtype\":\"")?;
            json.write_all(tensor.dtype.name().as_bytes())?;
            json.write_all(b"\",\"shape\":")?;
            to_writer(&mut json, tensor.shape)?;
            let end = start + tensor.byte_len().unwrap_or_default();
            json.write_all(b",\"data_offsets\":")?;
            to_writer(&mut json, &[start, end])?;
            json.write_all(b"}")?;
            start = end;
            before = ",";
        }
        json.write_all(match before {
            "{" => b"{}",
            _ => b"}",
        })
    };
    write().map_err(|error| Error::io(Code::Io, error))
}

/// Counts what is written.
struct Len(usize);

impl Write for Len {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Checks that whoever opens the file with default limits can read it, by reading it.
fn check_readable(bytes: &[u8], data_len: u64) -> Result<()> {
    let file_len = data_len.checked_add(bytes.len() as u64);
    let file_len = file_len.ok_or_else(|| Error::new(Code::OffsetsOverflow))?;
    let options = HeaderOptions {
        profile: Profile::Strict,
        ..HeaderOptions::default()
    };
    Header::check_new(bytes, file_len, &options)
        .map_err(|error| error.help("readers would refuse the file: it is not written"))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;
    use rstest::rstest;
    use safetensors::tensor::TensorView;
    use serde_json::{Map, Value};

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
        let new: Vec<_> = new.collect();
        NewHeader::new(new.len(), |at| new.get(at).copied(), metadata, alignment)
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
        let data = header
            .order()
            .iter()
            .flat_map(|&position| &data[position as usize]);
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
