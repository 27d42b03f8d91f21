//! Columns that line up, and fit the terminal.

use std::io::{self, Write};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::{HEADING, Output};

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Columns with a heading each.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<(&'static str, Align)>,
    /// The cells of all rows, end to end: there may be millions.
    cells: String,
    /// Where each of them ends.
    ends: Vec<usize>,
}

/// Between two columns.
const GAP: usize = 2;

/// A column that is cut keeps so much.
const LEAST: usize = 8;

impl Table {
    pub(crate) fn new(headings: &[(&'static str, Align)]) -> Self {
        Self {
            headings: headings.to_vec(),
            cells: String::new(),
            ends: Vec::new(),
        }
    }

    /// Adds a row, with a cell for each heading.
    pub(crate) fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        for cell in cells {
            self.cells.push_str(cell.as_ref());
            self.ends.push(self.cells.len());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The cells, row by row.
    fn cells(&self) -> impl Iterator<Item = &str> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let ranges = starts.zip(self.ends.iter().copied());
        ranges.map(|(start, end)| self.cells.get(start..end).unwrap_or_default())
    }

    /// Writes it; where it is wider than `width`, its widest words are cut in the middle, and where
    /// that is not enough, its last columns are left out.
    pub(crate) fn write(&self, out: &mut Output, width: Option<usize>) -> io::Result<()> {
        let mut lines = self.lines(width);
        if let Some(headings) = lines.next() {
            let heading = out.style(HEADING);
            writeln!(out, "{heading}{headings}{heading:#}")?;
        }
        lines.try_for_each(|line| writeln!(out, "{line}"))
    }

    /// The headings, then the rows.
    fn lines(&self, width: Option<usize>) -> impl Iterator<Item = String> {
        let widths = self.widths(width);
        let headings = self.headings.iter().map(|(heading, _)| *heading);
        let first = self.line(headings, &widths);
        let mut cells = self.cells();
        let rows = std::iter::from_fn(move || {
            let row: Vec<_> = cells.by_ref().take(self.headings.len()).collect();
            (!row.is_empty()).then(|| self.line(row.into_iter(), &widths))
        });
        std::iter::once(first).chain(rows)
    }

    fn line<'c>(&self, cells: impl Iterator<Item = &'c str>, widths: &[usize]) -> String {
        let mut line = String::new();
        let mut owed = 0;
        for ((cell, &width), (_, align)) in cells.zip(widths).zip(&self.headings) {
            let cell = shortened(cell, width);
            let space = width.saturating_sub(cell.width());
            let (before, after) = match align {
                Align::Left => (0, space),
                Align::Right => (space, 0),
            };
            // Spaces only before something, so that no line ends in them.
            if cell.is_empty() {
                owed += width + GAP;
            } else {
                line.extend(std::iter::repeat_n(' ', owed + before));
                line.push_str(&cell);
                owed = after + GAP;
            }
        }
        line
    }

    /// The width of each column that is shown.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let headings = self.headings.iter();
        let mut widths: Vec<_> = headings.map(|(heading, _)| heading.width()).collect();
        for (at, cell) in self.cells().enumerate() {
            if let Some(width) = widths.get_mut(at % self.headings.len().max(1)) {
                *width = cell.width().max(*width);
            }
        }
        let Some(limit) = limit else {
            return widths;
        };
        while self.shrink(&mut widths, limit) == Fits::Not && widths.len() > 1 {
            widths.pop();
        }
        widths
    }

    /// Cuts words, widest first; numbers stay as they are.
    fn shrink(&self, widths: &mut [usize], limit: usize) -> Fits {
        let limit = limit.saturating_sub(GAP * widths.len().saturating_sub(1));
        loop {
            let total: usize = widths.iter().sum();
            let too_wide = total.saturating_sub(limit);
            if too_wide == 0 {
                return Fits::Well;
            }
            let words = widths.iter_mut().zip(&self.headings);
            let words = words.filter(|(_, (_, align))| *align == Align::Left);
            let widest = words.map(|(width, _)| width).max();
            let Some(widest) = widest.filter(|widest| **widest > LEAST) else {
                return Fits::Not;
            };
            // Little by little, so that two wide columns are cut alike.
            *widest -= too_wide.min(widest.div_ceil(8)).min(*widest - LEAST);
        }
    }
}

/// Whether columns fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fits {
    Well,
    Not,
}

/// Text that is at most so many columns wide: its middle is left out.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let (head_room, tail_room) = (room / 2, room - room / 2);
    let head = fitting(text.chars(), head_room);
    let tail: Vec<_> = fitting(text.chars().rev(), tail_room);
    let tail = tail.into_iter().rev();
    head.into_iter().chain(['…']).chain(tail).collect()
}

fn fitting(chars: impl Iterator<Item = char>, room: usize) -> Vec<char> {
    let mut used = 0;
    chars
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= room
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[
            ("name", Align::Left),
            ("size", Align::Right),
            ("file", Align::Left),
        ]);
        let row = |name: &str, size: &str, file: &str| [name, size, file].map(str::to_owned);
        table.row(row(
            "embeddings.word_embeddings.weight",
            "21.5 KB",
            "model.safetensors",
        ));
        table.row(row("日本語.bias", "4 B", ""));
        table
    }

    fn lines(width: Option<usize>) -> Vec<String> {
        table().lines(width).collect()
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(
            lines(None),
            [
                "name                                  size  file",
                "embeddings.word_embeddings.weight  21.5 KB  model.safetensors",
                "日本語.bias                            4 B",
            ]
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 10..70 {
            for line in lines(Some(width)) {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
        assert!(lines(Some(40))[1].contains('…'));
        assert_eq!(lines(Some(64)), lines(None));
    }

    #[test]
    fn both_ends_of_a_cut_name_are_kept() {
        assert_eq!(shortened("abcdefgh", 5), "ab…gh");
        assert_eq!(shortened("abcdefgh", 8), "abcdefgh");
        assert_eq!(shortened("日本語日本語", 5), "日…語");
        assert_eq!(shortened("abc", 0), "…");
    }
}
