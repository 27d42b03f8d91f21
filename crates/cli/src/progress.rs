//! A bar for whatever moves bytes: how many, how fast, how long still.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use safeshard_core::Progress;

/// What the library calls with its progress.
pub(crate) type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Whether there may be a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// On a terminal.
    OnTerminal,
    /// Never: `--quiet`, `--json`.
    Never,
}

/// A bar on standard error; gone when dropped.
#[derive(Debug)]
pub(crate) struct Bar(Option<ProgressBar>);

/// A bar that says little on a narrow terminal is better than one that wraps.
const WIDE: &str = "{prefix} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";

/// How often it is drawn.
const EVERY: u8 = 10;

impl Bar {
    /// A bar for what `label` names.
    pub(crate) fn new(label: &'static str, show: Show) -> Self {
        let terminal = io::stderr().is_terminal() && io::stdout().is_terminal();
        if show == Show::Never || !terminal {
            return Self(None);
        }
        let style = ProgressStyle::with_template(WIDE);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(EVERY))
            .with_style(style.progress_chars("=> "))
            .with_prefix(label);
        // So that it moves, and the time goes on, where the medium is slow.
        bar.enable_steady_tick(Duration::from_millis(250));
        Self(Some(bar))
    }

    /// What to hand to the library.
    pub(crate) fn callback(&self) -> Option<OnProgress> {
        let bar = self.0.clone()?;
        Some(Arc::new(move |progress: Progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
