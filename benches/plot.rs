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

/// A line across all bars.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    /// Where it stands.
    pub(crate) value: f64,
    /// What it is.
    pub(crate) name: String,
}

/// Width of the picture, and where bars begin and end.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 680.0;
/// Height of what stands above the bars, and of one bar with its gap.
const TOP: f64 = 110.0;
const STEP: f64 = 30.0;

/// Height of the axis below the bars, with its numbers and its label.
const AXIS: f64 = 50.0;
/// Most numbers on the axis besides zero.
const TICKS_MAX: f64 = 6.0;
/// Height of a line of text.
const LINE: f64 = 18.0;

/// A picture of horizontal bars under a title and lines of text (at most two), over an axis with numbers and a label, with lines for limits.
pub(crate) fn bars(title: &str, text: &str, axis: &str, bars: &[Bar], limits: &[Limit]) -> String {
    let values = bars.iter().map(|bar| bar.value).chain(limits.iter().map(|limit| limit.value));
    let most = values.fold(f64::MIN_POSITIVE, f64::max);
    let bottom = TOP + STEP * bars.len() as f64;
    let height = bottom + AXIS;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"20\" y=\"30\" font-size=\"18\" font-weight=\"bold\" fill=\"#222222\">{}</text>\n",
        escape(title),
    );
    for (number, line) in text.lines().enumerate() {
        let y = 52.0 + LINE * number as f64;
        let _infallible =
            writeln!(picture, "<text x=\"20\" y=\"{y}\" fill=\"#555555\">{}</text>", escape(line));
    }
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
    let step = tick_step(most);
    for tick in 0..=(most / step) as u32 {
        // Without the last digits that a sum of tenths brings along.
        let value = (f64::from(tick) * step * 1e6).round() / 1e6;
        let (x, text_y) = (LEFT + (RIGHT - LEFT) * value / most, bottom + 18.0);
        let _infallible = writeln!(
            picture,
            "<line x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#555555\"/>\n\
             <text x=\"{x:.1}\" y=\"{text_y:.1}\" text-anchor=\"middle\" font-size=\"12\" fill=\"#555555\">{value}</text>",
            bottom + 5.0,
        );
    }
    let (middle, label_y) = (f64::midpoint(LEFT, RIGHT), bottom + 38.0);
    let _infallible = writeln!(
        picture,
        "<line x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{RIGHT}\" y2=\"{bottom}\" stroke=\"#555555\"/>\n\
         <text x=\"{middle}\" y=\"{label_y}\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
        escape(axis)
    );
    for limit in limits {
        let x = LEFT + (RIGHT - LEFT) * limit.value / most;
        let (from, text_y) = (TOP - 6.0, TOP - 8.0);
        let _infallible = writeln!(
            picture,
            "<line x1=\"{x:.1}\" y1=\"{from}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#b3402a\" stroke-dasharray=\"5 4\"/>\n\
             <text x=\"{x:.1}\" y=\"{text_y}\" text-anchor=\"middle\" font-size=\"12\" fill=\"#b3402a\">{} {:.2}</text>",
            escape(&limit.name),
            limit.value
        );
    }
    picture + "</svg>\n"
}

/// Distance of the numbers on an axis: 1, 2 or 5 times a power of ten.
fn tick_step(most: f64) -> f64 {
    let least = most / TICKS_MAX;
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|times| times * power);
    steps.into_iter().find(|step| *step >= least).unwrap_or(10.0 * power)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{Bar, Limit, bars};

    #[test]
    fn the_longest_bar_fills_the_width_and_names_are_escaped() {
        let bar = |name: &str, value| Bar { name: name.into(), value, ours: false };
        let picture = bars("a < b", "", "seconds", &[bar("x & y", 1.0), bar("z", 4.0)], &[]);
        assert!(picture.contains("a &lt; b") && picture.contains("x &amp; y"));
        assert!(picture.contains("width=\"430.0\"") && picture.contains("width=\"107.5\""));
    }

    #[test]
    fn the_axis_has_numbers_and_a_label_and_limits_stand_where_they_belong() {
        let bar = Bar { name: "x".into(), value: 2.0, ours: true };
        let limit = Limit { value: 8.0, name: "copy".into() };
        let picture = bars("t", "", "seconds & more", &[bar], &[limit]);
        assert!(picture.contains(">seconds &amp; more<") && picture.contains(">copy 8.00<"));
        // The limit is the longest: a quarter of the width is the bar, and the axis ends at the limit.
        assert!(picture.contains("width=\"107.5\"") && picture.contains("<line x1=\"680.0\""));
        assert!(picture.contains(">0<") && picture.contains(">2<") && picture.contains(">8<"));
    }
}
