//! The binary as people and scripts meet it.

mod diff;
mod digest;
mod documents;
mod faults;
mod index;
mod inspect;
mod meta;
mod output;
mod support;
mod verify;
