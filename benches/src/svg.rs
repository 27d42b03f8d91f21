//! Horizontal bars as an SVG picture.

use std::fmt::Write;

use crate::job::Side;

pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) side: Side,
    /// The bar's length.
    pub(crate) median: f64,
    /// A mark on the bar.
    pub(crate) best: f64,
    /// Written behind the bar.
    pub(crate) value: String,
}

const WIDTH: f64 = 800.0;
const LABELS: f64 = 330.0;
const VALUES: f64 = 90.0;
const ROW: f64 = 30.0;
const TITLE: f64 = 44.0;
const MARGIN: f64 = 16.0;

/// A white picture, so that it is legible on any page.
pub(crate) fn bars(title: &str, bars: &[Bar]) -> String {
    let height = TITLE + ROW * bars.len() as f64 + MARGIN;
    let longest = bars
        .iter()
        .map(|bar| bar.median)
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - VALUES - MARGIN) / longest;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" \
         font-size=\"13\" fill=\"#1f2328\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"6\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"27\" font-size=\"15\" font-weight=\"600\">{}</text>\n",
        escaped(title)
    );
    for (row, bar) in bars.iter().enumerate() {
        let top = TITLE + ROW * row as f64;
        let (middle, length, mark) = (top + 19.0, bar.median * scale, LABELS + bar.best * scale);
        let colour = match bar.side {
            Side::Ours => "#1f6feb",
            Side::Rival => "#afb8c1",
            Side::Floor => "#d4a72c",
        };
        // Writing to a string does not fail.
        let _ok = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABELS}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"20\" rx=\"2\" \
             fill=\"{colour}\"/>\n\
             <path d=\"M{mark:.1} {:.1}v20\" stroke=\"#1f2328\" stroke-opacity=\"0.55\"/>\n\
             <text x=\"{:.1}\" y=\"{middle:.1}\" font-weight=\"600\">{}</text>",
            LABELS - 8.0,
            escaped(&bar.label),
            top + 5.0,
            top + 5.0,
            LABELS + length + 8.0,
            escaped(&bar.value),
        );
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the elements that are open at the end; panics where one is closed that is not open.
    fn open_elements(xml: &str) -> Vec<&str> {
        let mut open = Vec::new();
        for element in xml.split('<').skip(1) {
            let (tag, text) = element.split_once('>').expect("a tag ends");
            assert!(
                !text.contains('>') && tag.matches('"').count() % 2 == 0,
                "{element}"
            );
            assert!(
                !text
                    .replace("&amp;", "")
                    .replace("&lt;", "")
                    .replace("&gt;", "")
                    .contains('&')
            );
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        open
    }

    #[test]
    fn the_picture_is_well_formed_and_in_proportion() {
        let bar = |label: &str, median| Bar {
            label: label.to_owned(),
            side: Side::Ours,
            median,
            best: median,
            value: String::new(),
        };
        let svg = bars("a < b & c", &[bar("x<y>", 1.0), bar("z", 2.0)]);
        assert!(open_elements(&svg).is_empty());
        assert!(svg.contains("a &lt; b &amp; c") && svg.contains("x&lt;y&gt;"));
        assert!(
            svg.contains("width=\"364.0\"") && svg.contains("width=\"182.0\""),
            "{svg}"
        );
    }

    #[test]
    fn no_bars_make_a_picture_too() {
        assert!(open_elements(&bars("none", &[])).is_empty());
    }
}
