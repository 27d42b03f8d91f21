//! Memory that is filled before it is read: no zeroing, and proof that every byte was written.
//!
//! One of the four modules of this crate with unsafe code. [`fill_all`] turns "was written" from a promise into
//! something checked: what a reader returns must be the very bytes it was given.

use std::fmt;
use std::mem::MaybeUninit;

use super::new_memory::NewMemory;
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::limits::room;

/// A place in memory that the engine fills with a tensor's bytes.
///
/// # Safety
/// [`Destination::bytes`] must return the same region, of the same length, every time, and the
/// region must stay where it is until [`Destination::assume_filled`]: the engine fills it from
/// several threads and then vouches for all of it.
pub unsafe trait Destination: Send {
    /// What the filled memory becomes.
    type Filled;

    /// The memory, uninitialised or not.
    fn bytes(&mut self) -> &mut [MaybeUninit<u8>];

    /// Whether nobody has touched the memory since it was allocated: then the kernel is asked to make
    /// it of huge pages; a large read then takes about 0.4 of the time. `false` unless implemented.
    fn is_untouched(&self) -> bool {
        false
    }

    /// Hands the memory over as initialised.
    ///
    /// # Safety
    /// Every byte of [`Destination::bytes`] has been written.
    unsafe fn assume_filled(self) -> Self::Filled;
}

// SAFETY: a slice stays where it is and keeps its length.
unsafe impl<'b> Destination for &'b mut [MaybeUninit<u8>] {
    type Filled = &'b mut [u8];

    fn bytes(&mut self) -> &mut [MaybeUninit<u8>] {
        self
    }

    unsafe fn assume_filled(self) -> &'b mut [u8] {
        // SAFETY: the caller has written every byte.
        unsafe { self.assume_init_mut() }
    }
}

/// Memory that holds something already and is overwritten.
///
/// Not public: through [`Destination::bytes`] safe code could make its bytes uninitialised.
pub(crate) struct Overwrite<'b> {
    memory: &'b mut [MaybeUninit<u8>],
    filled: bool,
}

impl<'b> Overwrite<'b> {
    pub(crate) fn new(memory: &'b mut [u8]) -> Self {
        // SAFETY: same layout; `drop` sees to it that the bytes are initialised when the borrow ends.
        let memory =
            unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), memory.len()) };
        Self {
            memory,
            filled: false,
        }
    }
}

impl Drop for Overwrite<'_> {
    /// A source that fails half-way may have left anything behind, uninitialised bytes included.
    fn drop(&mut self) {
        if !self.filled {
            self.memory.fill(MaybeUninit::new(0));
        }
    }
}

// SAFETY: a slice stays where it is and keeps its length.
unsafe impl Destination for Overwrite<'_> {
    type Filled = ();

    fn bytes(&mut self) -> &mut [MaybeUninit<u8>] {
        self.memory
    }

    unsafe fn assume_filled(mut self) {
        self.filled = true;
    }
}

/// Elements that any bytes make: plain numbers.
///
/// # Safety
/// Every bit pattern of the type's size is a valid value, and the type has no padding.
pub(crate) unsafe trait Plain: Copy + Send {}

/// A vector with room for its elements but none in it yet.
pub(crate) struct UninitVec<T> {
    vec: Vec<T>,
    len: usize,
}

impl<T: Plain> UninitVec<T> {
    /// Room for `byte_len` bytes, which must be a multiple of the element's size.
    pub(crate) fn new(byte_len: u64) -> Result<Self> {
        let bytes = usize::try_from(byte_len).unwrap_or(usize::MAX);
        let len = bytes / size_of::<T>();
        let vec = room(len)?;
        Ok(Self { vec, len })
    }
}

// SAFETY: the vector is not touched between `new` and `assume_filled`, so its memory stays.
unsafe impl<T: Plain> Destination for UninitVec<T> {
    type Filled = Vec<T>;

    fn bytes(&mut self) -> &mut [MaybeUninit<u8>] {
        let elements = self.vec.spare_capacity_mut();
        let len = self.len.min(elements.len()) * size_of::<T>();
        // SAFETY: the memory belongs to the vector, is borrowed as long as the result, is `len`
        // bytes long, and `MaybeUninit<u8>` needs neither alignment nor initialisation. What is
        // written through it may be any bytes, which `Plain` allows.
        unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), len) }
    }

    fn is_untouched(&self) -> bool {
        true
    }

    unsafe fn assume_filled(mut self) -> Vec<T> {
        // SAFETY: `new` reserved `len` elements, the caller has written all their bytes, and any
        // bytes are valid elements.
        unsafe { self.vec.set_len(self.len) };
        self.vec
    }
}

/// One line an element type: variant, Rust type, the dtypes that are kept in it.
macro_rules! element_types {
    ($($variant:ident($type:ty) $($dtype:ident)|+;)*) => {
        $(
            // SAFETY: a plain number without padding, of which every bit pattern is one.
            unsafe impl Plain for $type {}
        )*

        /// The elements of a tensor in a vector of their own type.
        ///
        /// Dtypes without a Rust number type (`BOOL`, the 8-bit floats and those smaller than a
        /// byte) are kept as their bytes in `U8`; `C64` as pairs in `F32`.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum TypedVec {
            $(#[doc = concat!("Elements of type `", stringify!($type), "`.")] $variant(Vec<$type>),)*
        }

        enum Typed {
            $($variant(UninitVec<$type>),)*
        }

        impl Typed {
            fn new(dtype: Dtype, byte_len: u64) -> Result<Self> {
                Ok(match dtype {
                    $($(Dtype::$dtype)|+ => Self::$variant(UninitVec::new(byte_len)?),)*
                })
            }
        }

        // SAFETY: as the vectors it stands for.
        unsafe impl Destination for TypedBuffer {
            type Filled = TypedVec;

            fn bytes(&mut self) -> &mut [MaybeUninit<u8>] {
                match &mut self.0 { $(Typed::$variant(vec) => vec.bytes(),)* }
            }

            fn is_untouched(&self) -> bool {
                true
            }

            unsafe fn assume_filled(self) -> TypedVec {
                match self.0 {
                    // SAFETY: the caller's promise is the same.
                    $(Typed::$variant(vec) => TypedVec::$variant(unsafe { vec.assume_filled() }),)*
                }
            }
        }
    };
}

element_types! {
    U8(u8) Bool | F4 | F6E2M3 | F6E3M2 | U8 | F8E5M2 | F8E4M3 | F8E8M0 | F8E4M3Fnuz | F8E5M2Fnuz;
    I8(i8) I8;
    I16(i16) I16;
    U16(u16) U16;
    F16(half::f16) F16;
    Bf16(half::bf16) Bf16;
    I32(i32) I32;
    U32(u32) U32;
    F32(f32) F32 | C64;
    F64(f64) F64;
    I64(i64) I64;
    U64(u64) U64;
}

/// Room for a tensor's elements, in a vector of their own type; becomes a [`TypedVec`].
pub struct TypedBuffer(Typed);

impl TypedBuffer {
    /// Room for `byte_len` bytes of elements of `dtype`, not initialised.
    ///
    /// # Errors
    /// `limit-memory` where there is not enough memory.
    pub fn new(dtype: Dtype, byte_len: u64) -> Result<Self> {
        Typed::new(dtype, byte_len).map(Self)
    }
}

impl fmt::Debug for TypedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypedBuffer")
    }
}

/// Memory of so many bytes that are not initialised: a buffer to read into.
///
/// # Errors
/// `limit-memory`.
pub(crate) fn uninit(len: u64) -> Result<Vec<MaybeUninit<u8>>> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut memory = room(len)?;
    // SAFETY: there is room for so many, and they may be anything.
    unsafe { memory.set_len(len) };
    Ok(memory)
}

/// Calls `read` with what is left of `buf`, and how much is filled, until nothing is left.
///
/// `read` fills a beginning of what it is given and returns it. That it returned that and nothing
/// else is checked, so a source that is wrong about itself is an error and not undefined behaviour.
/// A call that a signal interrupted is made again.
pub(crate) fn fill_all<'b>(
    buf: &'b mut [MaybeUninit<u8>],
    mut read: impl for<'r> FnMut(usize, &'r mut [MaybeUninit<u8>]) -> Result<&'r mut [u8]>,
) -> Result<&'b mut [u8]> {
    let mut filled = 0;
    while filled < buf.len() {
        let rest = buf.get_mut(filled..).unwrap_or_default();
        let (start, room) = (rest.as_ptr().cast::<u8>(), rest.len());
        let part = match read(filled, rest) {
            Err(error) if error.is_interrupted() => continue,
            part => part?,
        };
        if part.as_ptr() != start || part.len() > room || part.is_empty() {
            return Err(Error::new(Code::BufferSize).found("a source that filled another buffer"));
        }
        filled += part.len();
    }
    // SAFETY: the parts that `read` returned were initialised bytes (`&mut [u8]`), each began where
    // the one before it ended, and together they are all of `buf`.
    Ok(unsafe { buf.assume_init_mut() })
}

/// A buffer that is filled from front to back with bytes that come in parts.
pub(crate) struct Filling<'b> {
    buf: &'b mut [MaybeUninit<u8>],
    /// So many bytes of its beginning are initialised.
    filled: usize,
}

impl<'b> Filling<'b> {
    pub(crate) fn new(buf: &'b mut [MaybeUninit<u8>]) -> Self {
        Self { buf, filled: 0 }
    }

    /// Copies the next bytes into it.
    ///
    /// # Errors
    /// `buffer-size` where there is no room for all of them; then there are none of them.
    pub(crate) fn push(&mut self, part: &[u8]) -> Result<()> {
        let rest = self.buf.get_mut(self.filled..).unwrap_or_default();
        let Some(room) = rest.get_mut(..part.len()) else {
            return Err(self.wrong_size(self.filled.saturating_add(part.len())));
        };
        room.write_copy_of_slice(part);
        self.filled += part.len();
        Ok(())
    }

    /// All of it.
    ///
    /// # Errors
    /// `buffer-size` where it is not full.
    pub(crate) fn finish(self) -> Result<&'b mut [u8]> {
        if self.filled != self.buf.len() {
            return Err(self.wrong_size(self.filled));
        }
        // SAFETY: `push` wrote the first `filled` bytes, one part behind the other, and that is all.
        Ok(unsafe { self.buf.assume_init_mut() })
    }

    fn wrong_size(&self, found: usize) -> Error {
        Error::new(Code::BufferSize)
            .expected(format_args!("{} bytes", self.buf.len()))
            .found(found)
    }
}

/// A vector filled by `read`, as [`fill_all`].
pub(crate) fn filled_vec(
    len: u64,
    read: impl for<'r> FnMut(usize, &'r mut [MaybeUninit<u8>]) -> Result<&'r mut [u8]>,
) -> Result<Vec<u8>> {
    let mut buffer = UninitVec::<u8>::new(len)?;
    NewMemory::new(std::iter::once(buffer.bytes())).before_filling(buffer.bytes());
    fill_all(buffer.bytes(), read)?;
    // SAFETY: `fill_all` has seen every byte initialised.
    Ok(unsafe { buffer.assume_filled() })
}

/// A buffer that is filled again and again, in the same memory, which is never zeroed.
#[derive(Default)]
pub(crate) struct Refilled(Vec<u8>);

impl Refilled {
    /// Fills it with `len` bytes, as [`fill_all`]; if it has not so much room, it gets room for `at_least`.
    ///
    /// # Errors
    /// `limit-memory`; those of `read`, and then it is empty.
    pub(crate) fn fill(
        &mut self,
        at_least: u64,
        len: u64,
        read: impl for<'r> FnMut(usize, &'r mut [MaybeUninit<u8>]) -> Result<&'r mut [u8]>,
    ) -> Result<()> {
        self.0.clear();
        let fits = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
        if self.0.capacity() < fits(len) {
            self.0 = room(fits(len.max(at_least)))?;
        }
        let room = self.0.spare_capacity_mut().get_mut(..fits(len));
        let filled = fill_all(room.unwrap_or_default(), read)?.len();
        // SAFETY: `fill_all` has seen so many bytes initialised, from the beginning on.
        unsafe { self.0.set_len(filled) };
        Ok(())
    }

    /// What it was filled with.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_fills_something_else_is_refused() {
        let mut buf = [MaybeUninit::uninit(); 4];
        let error = fill_all(&mut buf, |_, _| {
            Ok(Box::leak(vec![0; 4].into_boxed_slice()))
        });
        assert_eq!(error.unwrap_err().code(), Code::BufferSize);
        let error = fill_all(&mut buf, |_, _| Ok(&mut []));
        assert_eq!(error.unwrap_err().code(), Code::BufferSize);
    }

    #[test]
    fn short_reads_are_continued() {
        let mut buf = [MaybeUninit::uninit(); 5];
        let filled = fill_all(&mut buf, |filled, rest| {
            let part = rest.get_mut(..1).unwrap();
            Ok(part.write_copy_of_slice(&[filled as u8]))
        });
        assert_eq!(filled.unwrap(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn parts_fill_a_buffer_exactly_or_not_at_all() {
        let mut buf = [MaybeUninit::uninit(); 4];
        let mut filling = Filling::new(&mut buf);
        for part in [&[1][..], &[], &[2, 3]] {
            filling.push(part).unwrap();
        }
        assert_eq!(filling.push(&[4, 5]).unwrap_err().code(), Code::BufferSize);
        filling.push(&[4]).unwrap();
        assert_eq!(filling.finish().unwrap(), [1, 2, 3, 4]);
        let mut filling = Filling::new(&mut buf);
        filling.push(&[9]).unwrap();
        assert_eq!(filling.finish().unwrap_err().code(), Code::BufferSize);
        assert!(Filling::new(&mut []).finish().unwrap().is_empty());
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        let error = TypedBuffer::new(Dtype::F32, 1 << 62).unwrap_err();
        assert_eq!(error.code(), Code::LimitMemory);
    }

    #[test]
    fn a_buffer_has_its_element_types_vector() {
        let mut buffer = TypedBuffer::new(Dtype::Bf16, 4).unwrap();
        let bytes = buffer.bytes();
        bytes.write_copy_of_slice(&[0x80, 0x3f, 0x00, 0x40]);
        // SAFETY: all four bytes were just written.
        let filled = unsafe { buffer.assume_filled() };
        let [one, two] = [1.0, 2.0].map(half::bf16::from_f32);
        assert_eq!(filled, TypedVec::Bf16(vec![one, two]));
    }
}
