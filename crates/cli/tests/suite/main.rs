//! The binary as people and scripts meet it.

mod convert;
mod diff;
mod digest;
mod documents;
mod faults;
mod index;
mod inspect;
mod meta;
mod output;
mod reshard;
mod support;
mod verify;
mod writing;
mod writing_faults;
