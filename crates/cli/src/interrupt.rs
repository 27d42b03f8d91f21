//! Ctrl-C, and other signals that ask a process to end.
//!
//! A command that only looks is ended by the system. One that writes, or runs for long, asks for a
//! [`Cancel`]: the first signal works it, so that what is half written is removed; a second one ends
//! the process there and then.

use std::process;
use std::sync::OnceLock;
use std::thread;

use safeshard_core::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What shells add to the number of the signal that ended a process.
const BY_SIGNAL: i32 = 128;

/// The signal that came.
static SIGNAL: OnceLock<i32> = OnceLock::new();

/// A switch that the next signal works.
pub(crate) fn cancel_on_signal() -> Cancel {
    let cancel = Cancel::default();
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

/// What a process ends with that was cancelled.
pub(crate) fn exit_code() -> u8 {
    let signal = SIGNAL.get().copied().unwrap_or(SIGINT);
    u8::try_from(BY_SIGNAL + signal).unwrap_or(u8::MAX)
}
