//! Ctrl-C, and other signals that ask a process to end.
//!
//! A command that only looks is ended by the system. One that writes, or runs for long, asks for a
//! [`Cancel`]: the first signal works it, so that what is half written is removed; a second one ends
//! the process there and then.

use std::io::{self, Write};
use std::process;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::thread;

use safeshard_core::{Cancel, Printable};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// What shells add to the number of the signal that ended a process.
const BY_SIGNAL: i32 = 128;

/// The signal that came.
static SIGNAL: OnceLock<i32> = OnceLock::new();

/// A switch that the next signal works.
pub(crate) fn cancel_on_signal() -> Cancel {
    let cancel = Cancel::on_wait(|folder| {
        let folder = Printable::of(folder);
        // Nobody is left to be told.
        let _closed = writeln!(io::stderr(), "waiting for another save into {folder}");
    });
    let switch = cancel.clone();
    // Where there are no handlers or threads to be had, signals end the process as they always do.
    if let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        let watch = move || {
            for signal in signals.forever() {
                if SIGNAL.set(signal).is_err() {
                    process::exit(BY_SIGNAL + signal);
                }
                switch.cancel();
            }
        };
        let watcher = thread::Builder::new().name("safeshard-signals".into());
        let _no_thread = watcher.spawn(watch);
    }
    cancel
}

/// A file that grows beyond what the process may write (`ulimit -f`) is a write that fails, is told and
/// undone; without a handler, the signal that comes with it would end the process there and then.
pub(crate) fn survive_the_limit_of_file_sizes() {
    let nobody_looks = Arc::new(AtomicBool::new(false));
    let _no_handler = flag::register(SIGXFSZ, nobody_looks);
}

/// What a process ends with that was cancelled.
pub(crate) fn exit_code() -> u8 {
    let signal = SIGNAL.get().copied().unwrap_or(SIGINT);
    u8::try_from(BY_SIGNAL + signal).unwrap_or(u8::MAX)
}
