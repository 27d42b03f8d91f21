//! The machine that runs a pickle.

use std::collections::HashMap;

use safeshard_core::{Code, Error, Result};

use super::Pickle;
use super::scalars::{is_decimal, is_utf8_with_surrogates, latin1, signed};
use super::values::{Global, Id, Object, Value, Values};
use crate::input::Input;
use crate::options::ImportLimits;

/// Longest line of text; names of modules and numbers are far shorter.
const LINE: u64 = 4096;

/// The highest protocol.
const PROTOCOL: u8 = 5;

/// Runs the pickle that comes next, to its end and no further.
///
/// # Errors
/// `pickle-…`, with the place; `limit-pickle`; those of the source.
pub(crate) fn load(input: &mut Input<'_>, limits: &ImportLimits) -> Result<Pickle> {
    let start = input.at();
    let mut machine = Machine {
        input,
        limits,
        values: Values::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        at: start,
    };
    loop {
        machine.at = machine.input.at();
        if machine.at - start >= limits.pickle_bytes {
            return Err(machine.limit(limits.pickle_bytes, "bytes"));
        }
        let [opcode] = machine.input.array()?;
        if opcode == STOP {
            let top = machine.pop()?;
            return match machine.stack.is_empty() && machine.marks.is_empty() {
                true => Ok(Pickle {
                    values: machine.values,
                    top,
                }),
                false => Err(machine.error(Code::PickleStack).found("values left over")),
            };
        }
        machine.step(opcode)?;
    }
}

struct Machine<'m, 's> {
    input: &'m mut Input<'s>,
    limits: &'m ImportLimits,
    values: Values,
    stack: Vec<Id>,
    /// Lengths of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Where the instruction is.
    at: u64,
}

const STOP: u8 = b'.';

impl Machine<'_, '_> {
    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // PROTO, FRAME: the latter only says how much may be read at once.
            0x80 => self.protocol()?,
            0x95 => self.input.skip(8)?,
            b'(' => {
                self.count(self.marks.len())?;
                self.marks.push(self.stack.len());
            }
            b'0' => match self.marks.last() == Some(&self.stack.len()) {
                true => drop(self.marks.pop()),
                false => drop(self.pop()?),
            },
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'I' | b'L' | b'F' | b'S' | b'V' => self.line(opcode)?,
            b'J' => {
                let number = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Int(number.into()))?;
            }
            b'K' | b'M' | 0x8a | 0x8b => self.integer(opcode)?,
            b'G' => {
                self.input.skip(8)?;
                self.push(Value::Other(FLOAT))?;
            }
            b'T' | b'U' | b'X' | 0x8c | 0x8d => self.text(opcode)?,
            b'B' | b'C' | 0x8e | 0x96 => self.bytes(opcode)?,
            b')' | b't' | 0x85..=0x87 => self.tuple(opcode)?,
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set_items(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            b'p' | b'q' | b'r' | 0x94 => self.put(opcode)?,
            b'g' | b'h' | b'j' => self.get(opcode)?,
            b'c' | 0x93 => {
                let global = self.global(opcode)?;
                self.push_id(global)?;
            }
            b'i' | b'o' | b'R' | 0x81 | 0x92 => self.call(opcode)?,
            b'b' => self.build()?,
            b'Q' => {
                let name = self.pop()?;
                self.push(Value::Persistent(name))?;
            }
            b'P' => {
                return Err(self
                    .error(Code::PicklePersistent)
                    .found("a storage in protocol 0, which torch cannot load either"));
            }
            _ => {
                let error = self.error(Code::PickleOpcode);
                return Err(error.found(format_args!("0x{opcode:02x}")));
            }
        }
        Ok(())
    }

    fn protocol(&mut self) -> Result<()> {
        match self.input.array()? {
            [..=PROTOCOL] => Ok(()),
            [protocol] => Err(self
                .error(Code::PickleProtocol)
                .expected(format_args!("at most {PROTOCOL}"))
                .found(protocol)),
        }
    }

    /// INT, LONG, FLOAT, STRING, UNICODE: values that are a line of text.
    fn line(&mut self, opcode: u8) -> Result<()> {
        let at = self.at;
        let line = self.input.line(LINE)?;
        let wrong = |code| Err(Error::new(code).at_offset(at));
        let value = match opcode {
            b'I' if line == b"01" => Value::Bool(true),
            b'I' if line == b"00" => Value::Bool(false),
            b'I' | b'L' => {
                let digits = line.strip_suffix(b"L").unwrap_or(line);
                let number = std::str::from_utf8(digits).ok().map(str::parse::<i64>);
                match number {
                    Some(Ok(number)) => Value::Int(number),
                    _ if is_decimal(digits) => Value::Other(BIG),
                    _ => return wrong(Code::PickleNumber),
                }
            }
            b'F' => Value::Other(FLOAT),
            // Of text with escapes, nothing that we need is made.
            _ if line.contains(&b'\\') => Value::Other("text with escapes"),
            b'S' => match line {
                [first @ (b'\'' | b'"'), text @ .., last] if first == last => {
                    Value::Text(latin1(text))
                }
                _ => return wrong(Code::PickleText),
            },
            _ => Value::Text(latin1(line)),
        };
        self.push(value)
    }

    /// BININT1, BININT2, LONG1, LONG4.
    fn integer(&mut self, opcode: u8) -> Result<()> {
        /// No number that a file of weights needs is longer.
        const LONGEST: u32 = 1024;
        let value = match opcode {
            b'K' => Value::Int(u8::from_le_bytes(self.input.array()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.input.array()?).into()),
            _ => {
                let len = match opcode {
                    0x8a => u8::from_le_bytes(self.input.array()?).into(),
                    _ => u32::from_le_bytes(self.input.array()?),
                };
                if len > LONGEST {
                    return Err(self
                        .error(Code::PickleNumber)
                        .found(format_args!("{len} bytes")));
                }
                signed(self.input.take(len.into())?).map_or(Value::Other(BIG), Value::Int)
            }
        };
        self.push(value)
    }

    /// A length before bytes, by the instruction that they belong to.
    fn length(&mut self, opcode: u8) -> Result<u64> {
        Ok(match opcode {
            b'U' | 0x8c | b'C' => u8::from_le_bytes(self.input.array()?).into(),
            b'T' => {
                let len = i32::from_le_bytes(self.input.array()?);
                u64::try_from(len)
                    .map_err(|_| self.error(Code::PickleText).found("a negative length"))?
            }
            0x8d | 0x8e | 0x96 => u64::from_le_bytes(self.input.array()?),
            _ => u32::from_le_bytes(self.input.array()?).into(),
        })
    }

    /// BINSTRING, SHORT_BINSTRING, BINUNICODE, SHORT_BINUNICODE, BINUNICODE8.
    fn text(&mut self, opcode: u8) -> Result<()> {
        let len = self.length(opcode)?;
        if len > self.limits.pickle_bytes && len <= self.input.left() {
            return Err(self.limit(self.limits.pickle_bytes, "bytes of text"));
        }
        let at = self.at;
        let bytes = self.input.take(len)?;
        let value = match std::str::from_utf8(bytes) {
            // Python 2 did not say what its bytes mean.
            _ if matches!(opcode, b'T' | b'U') => Value::Text(latin1(bytes)),
            Ok(text) => Value::Text(text.into()),
            Err(_) if is_utf8_with_surrogates(bytes) => Value::Other("text with surrogates"),
            Err(error) => {
                return Err(Error::new(Code::PickleText)
                    .at_offset(at)
                    .expected("UTF-8")
                    .found(error));
            }
        };
        self.push(value)
    }

    fn bytes(&mut self, opcode: u8) -> Result<()> {
        let len = self.length(opcode)?;
        self.input.skip(len)?;
        self.push(Value::Other("bytes"))
    }

    fn tuple(&mut self, opcode: u8) -> Result<()> {
        let items = match opcode {
            b')' => Vec::new(),
            b't' => self.pop_mark()?,
            _ => {
                let len = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(len);
                let start = start.filter(|start| *start >= self.floor());
                let start = start.ok_or_else(|| self.error(Code::PickleStack))?;
                self.stack.split_off(start)
            }
        };
        self.push(Value::Tuple(items.into()))
    }

    fn append(&mut self, new: &[Id]) -> Result<()> {
        let list = self.top()?;
        match self.values.get_mut(list) {
            Some(Value::List(items)) => items.extend(new),
            Some(Value::Object(object)) => object.items.extend(new),
            _ => return Err(self.unfit(list, "a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, new: &[Id]) -> Result<()> {
        let dict = self.top()?;
        let (new, rest) = new.as_chunks();
        if !rest.is_empty() {
            return Err(self.error(Code::PickleStack).found("a key without a value"));
        }
        let new = new.iter().map(|&[key, value]| (key, value));
        match self.values.get_mut(dict) {
            Some(Value::Dict(pairs)) => pairs.extend(new),
            Some(Value::Object(object)) => object.pairs.extend(new),
            _ => return Err(self.unfit(dict, "a dict")),
        }
        Ok(())
    }

    fn put(&mut self, opcode: u8) -> Result<()> {
        let place = match opcode {
            b'p' => self.line_number()?,
            b'q' => u8::from_le_bytes(self.input.array()?).into(),
            b'r' => u32::from_le_bytes(self.input.array()?),
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        let top = self.top()?;
        self.count(self.memo.len())?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn get(&mut self, opcode: u8) -> Result<()> {
        let place = match opcode {
            b'g' => self.line_number()?,
            b'h' => u8::from_le_bytes(self.input.array()?).into(),
            _ => u32::from_le_bytes(self.input.array()?),
        };
        match self.memo.get(&place) {
            Some(&value) => self.push_id(value),
            None => Err(self.error(Code::PickleMemo).found(place)),
        }
    }

    fn line_number(&mut self) -> Result<u32> {
        let at = self.at;
        let line = std::str::from_utf8(self.input.line(LINE)?).ok();
        let number = line.and_then(|line| line.parse().ok());
        number.ok_or_else(|| Error::new(Code::PickleNumber).at_offset(at))
    }

    /// GLOBAL, STACK_GLOBAL, and the one that INST begins with.
    fn global(&mut self, opcode: u8) -> Result<Id> {
        let (module, name) = match opcode {
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                match (self.values.text(module), self.values.text(name)) {
                    (Some(module), Some(name)) => (module.into(), name.into()),
                    _ => return Err(self.unfit(name, "the name of a callable")),
                }
            }
            _ => (self.line_name()?, self.line_name()?),
        };
        let offset = self.at;
        self.keep(Value::Global(Box::new(Global {
            module,
            name,
            offset,
        })))
    }

    fn line_name(&mut self) -> Result<Box<str>> {
        let at = self.at;
        let name = std::str::from_utf8(self.input.line(LINE)?);
        name.map(Into::into)
            .map_err(|_| Error::new(Code::PickleText).at_offset(at).expected("UTF-8"))
    }

    /// INST, OBJ, REDUCE, NEWOBJ, NEWOBJ_EX: what calls something.
    fn call(&mut self, opcode: u8) -> Result<()> {
        let (callable, args) = match opcode {
            b'i' => {
                let callable = self.global(opcode)?;
                let args = self.pop_mark()?;
                (callable, self.keep(Value::Tuple(args.into()))?)
            }
            b'o' => {
                let made = self.pop_mark()?;
                let Some((&callable, args)) = made.split_first() else {
                    return Err(self.error(Code::PickleStack).expected("a class"));
                };
                (callable, self.keep(Value::Tuple(args.into()))?)
            }
            _ => {
                if opcode == 0x92 {
                    // Arguments by name, of which no tensor has any.
                    self.pop()?;
                }
                let args = self.pop()?;
                (self.pop()?, args)
            }
        };
        self.push(Value::Object(Box::new(Object {
            callable,
            args,
            state: None,
            items: Vec::new(),
            pairs: Vec::new(),
            offset: self.at,
        })))
    }

    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let object = self.top()?;
        match self.values.get_mut(object) {
            Some(Value::Object(object)) if object.state.is_none() => object.state = Some(state),
            Some(Value::Object(_)) => {
                return Err(self
                    .error(Code::PickleType)
                    .found("an object with two states"));
            }
            _ => return Err(self.unfit(object, "an object")),
        }
        Ok(())
    }

    /// The bottom of what may be taken from the stack.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or_default()
    }

    fn top(&self) -> Result<Id> {
        let top = self.stack.get(self.floor()..).and_then(<[Id]>::last);
        top.copied().ok_or_else(|| self.error(Code::PickleStack))
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// What lies above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop();
        let mark = mark.filter(|mark| *mark <= self.stack.len());
        match mark {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.error(Code::PickleStack).found("no mark")),
        }
    }

    fn keep(&mut self, value: Value) -> Result<Id> {
        self.count(self.values.len())?;
        Ok(self.values.push(value))
    }

    fn push(&mut self, value: Value) -> Result<()> {
        let id = self.keep(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        self.count(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    /// That one more is not too many.
    fn count(&self, there: usize) -> Result<()> {
        let most = self.limits.values.min(u64::from(u32::MAX));
        match (there as u64) < most {
            true => Ok(()),
            false => Err(self.limit(most, "values")),
        }
    }

    fn limit(&self, most: u64, what: &str) -> Error {
        let error = self.error(Code::LimitPickle);
        error.expected(format_args!("at most {most} {what}"))
    }

    fn unfit(&self, value: Id, expected: &str) -> Error {
        let error = self.error(Code::PickleType).expected(expected);
        error.found(self.values.get(value).kind())
    }

    fn error(&self, code: Code) -> Error {
        Error::new(code).at_offset(self.at)
    }
}

const BIG: &str = "an integer of more than 64 bits";
const FLOAT: &str = "a float";
