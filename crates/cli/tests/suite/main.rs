//! The binary as people and scripts meet it.

mod after_a_kill;
mod convert;
mod costs;
mod diff;
mod digest;
mod documents;
mod faults;
mod foreign;
mod hostile;
mod index;
mod inspect;
mod messages;
mod meta;
mod nothing_lost;
mod output;
mod readers;
mod reshard;
mod scarce;
#[path = "../../../core/tests/support/strace.rs"]
#[allow(dead_code, unreachable_pub)]
mod strace;
mod support;
mod verify;
mod writing;
mod writing_faults;
