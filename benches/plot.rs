//! Bars as an SVG picture.
//!
//! Pure: text in, text out. Limit: as many bars as fit a page (about 20).

use std::fmt::Write as _;

/// One bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    /// What it stands for.
    pub(crate) name: String,
    /// Its length.
    pub(crate) value: f64,
    /// Whether it is ours: drawn in another colour.
    pub(crate) ours: bool,
}

/// Width of the picture, and where bars begin and end.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 680.0;
/// Height of what stands above the bars, and of one bar with its gap.
const TOP: f64 = 70.0;
const STEP: f64 = 30.0;

/// A picture of horizontal bars under a title and a line of text.
pub(crate) fn bars(title: &str, text: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = TOP + STEP * bars.len() as f64 + 20.0;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"20\" y=\"30\" font-size=\"18\" font-weight=\"bold\" fill=\"#222222\">{}</text>\n\
         <text x=\"20\" y=\"52\" fill=\"#555555\">{}</text>\n",
        escape(title),
        escape(text)
    );
    for (number, bar) in bars.iter().enumerate() {
        let y = TOP + STEP * number as f64;
        let width = (RIGHT - LEFT) * bar.value / most;
        let colour = if bar.ours { "#1f6f54" } else { "#9aa5b1" };
        let (name_x, text_y, value_x) = (LEFT - 10.0, y + 15.0, LEFT + width + 8.0);
        let _infallible = writeln!(
            picture,
            "<text x=\"{name_x}\" y=\"{text_y}\" text-anchor=\"end\" fill=\"#222222\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"20\" fill=\"{colour}\"/>\n\
             <text x=\"{value_x:.1}\" y=\"{text_y}\" fill=\"#222222\">{:.2}</text>",
            escape(&bar.name),
            bar.value
        );
    }
    picture + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{Bar, bars};

    #[test]
    fn the_longest_bar_fills_the_width_and_names_are_escaped() {
        let bar = |name: &str, value| Bar { name: name.into(), value, ours: false };
        let picture = bars("a < b", "", &[bar("x & y", 1.0), bar("z", 4.0)]);
        assert!(picture.contains("a &lt; b") && picture.contains("x &amp; y"));
        assert!(picture.contains("width=\"430.0\"") && picture.contains("width=\"107.5\""));
    }
}
