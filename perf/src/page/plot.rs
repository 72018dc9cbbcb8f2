//! Plots as inline SVG: lines over a linear axis or over percentiles, and bars. Knows numbers and names, no report.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 48.0;
const TICKS: usize = 5;
/// Colours of series; a further one begins anew.
const COLOURS: usize = 6;
const BAR_HEIGHT: f64 = 18.0;
/// Room for the names of bars.
const BAR_LEFT: f64 = 190.0;
const BAR_RIGHT: f64 = 90.0;

/// Text as it may stand in HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number for people: as many digits as tell something.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        1_000.0.. => 0,
        100.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or(format!("{sign}{grouped}"), |fraction| format!("{sign}{grouped}.{fraction}"))
}

/// A named line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// What runs along the bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Across {
    Linear,
    /// 0, 90, 99, 99.9 ... in equal steps; 100 lies half a step beyond the last.
    Percentiles,
}

/// A title and the names of both axes, with their units.
#[derive(Clone, Debug)]
pub(super) struct Text<'a> {
    pub(super) title: &'a str,
    pub(super) across: &'a str,
    pub(super) up: &'a str,
}

/// A step of 1, 2 or 5 times a power of ten, so that few of them reach the value.
fn step(value: f64) -> f64 {
    let raw = value.max(1e-9) / TICKS as f64;
    let power = 10_f64.powf(raw.log10().floor());
    let wanted = raw / power;
    power
        * if wanted <= 1.0 {
            1.0
        } else if wanted <= 2.0 {
            2.0
        } else if wanted <= 5.0 {
            5.0
        } else {
            10.0
        }
}

/// How many nines a percentile has.
fn nines(percentile: f64, most: f64) -> f64 {
    if percentile >= 100.0 { most } else { -(1.0 - percentile / 100.0).log10() }
}

/// Where values lie on the paper.
struct Frame {
    x_max: f64,
    y_max: f64,
    across: Across,
}

impl Frame {
    fn of(lines: &[Line], across: Across) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let x_max = match across {
            Across::Linear => points().map(|point| point.0).fold(0.0, f64::max),
            Across::Percentiles => {
                let below = points().map(|point| point.0).filter(|percentile| *percentile < 100.0);
                below.map(|percentile| nines(percentile, 0.0)).fold(1.0, f64::max) + 0.5
            }
        };
        let y_max = points().map(|point| point.1).fold(0.0, f64::max);
        let ceiling = (y_max / step(y_max)).ceil() * step(y_max);
        Self { x_max: if x_max > 0.0 { x_max } else { 1.0 }, y_max: ceiling.max(1e-9), across }
    }

    fn x(&self, value: f64) -> f64 {
        let value = if self.across == Across::Percentiles { nines(value, self.x_max) } else { value };
        LEFT + value / self.x_max * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.y_max * (HEIGHT - TOP - BOTTOM)
    }

    fn grid(&self, text: &Text<'_>, svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let up = step(self.y_max);
        for tick in (0..).map(|count| f64::from(count) * up).take_while(|tick| *tick <= self.y_max * 1.001) {
            let (y, label) = (self.y(tick), number(tick));
            let _ = write!(svg, r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/>"#);
            let _ = write!(svg, r#"<text class="end" x="{}" y="{:.1}">{label}</text>"#, LEFT - 8.0, y + 4.0);
        }
        let across: Vec<(f64, String)> = match self.across {
            Across::Linear => {
                let step = step(self.x_max);
                let ticks = (0..).map(|count| f64::from(count) * step).take_while(|tick| *tick <= self.x_max * 1.001);
                ticks.map(|tick| (tick, number(tick))).collect()
            }
            Across::Percentiles => {
                let all = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999];
                let known = all.into_iter().filter(|percentile| nines(*percentile, 0.0) <= self.x_max - 0.3);
                known.chain([100.0]).map(|tick| (tick, format!("{tick}"))).collect()
            }
        };
        for (tick, label) in across {
            let x = self.x(tick);
            let _ = write!(svg, r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{bottom}"/>"#);
            let _ = write!(svg, r#"<text class="middle" x="{x:.1}" y="{}">{label}</text>"#, bottom + 16.0);
        }
        let (middle, height) = (f64::midpoint(LEFT, right), f64::midpoint(TOP, bottom));
        let _ = write!(
            svg,
            r#"<text class="middle name" x="{middle}" y="{}">{}</text>"#,
            HEIGHT - 10.0,
            escape(text.across)
        );
        let _ = write!(
            svg,
            r#"<text class="middle name" transform="translate(12 {height}) rotate(-90)">{}</text>"#,
            escape(text.up)
        );
    }
}

fn open(title: &str, description: &str, height: f64) -> String {
    let (title, description) = (escape(title), escape(description));
    format!(
        "<figure><figcaption>{title}</figcaption>\
         <svg role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" aria-label=\"{title}: {description}\">\
         <title>{title}</title><desc>{description}</desc>"
    )
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut html = String::from(r#"<ul class="legend">"#);
    for (index, name) in names.enumerate() {
        let _ = write!(html, r#"<li><span class="key c{}"></span>{}</li>"#, index % COLOURS, escape(name));
    }
    html + "</ul>"
}

/// A plot of lines, with a legend where there are several.
pub(super) fn lines(text: &Text<'_>, across: Across, lines: &[Line]) -> String {
    let frame = Frame::of(lines, across);
    let last = |line: &Line| line.points.last().map_or(0.0, |point| point.1);
    let ends: Vec<String> = lines.iter().map(|line| format!("{} ends at {}", line.name, number(last(line)))).collect();
    let mut svg = open(text.title, &format!("{} over {}; {}", text.up, text.across, ends.join(", ")), HEIGHT);
    frame.grid(text, &mut svg);
    for (index, line) in lines.iter().enumerate() {
        let colour = index % COLOURS;
        let path: Vec<String> =
            line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", frame.x(*x), frame.y(*y))).collect();
        let _ = write!(svg, r#"<polyline class="line c{colour}" points="{}"/>"#, path.join(" "));
        // Of a few points each is worth a dot that says its values.
        for (x, y) in line.points.iter().filter(|_| line.points.len() <= 40) {
            let said = format!("{}: {} at {}", line.name, number(*y), number(*x));
            let (x, y) = (frame.x(*x), frame.y(*y));
            let _ = write!(
                svg,
                r#"<circle class="dot c{colour}" cx="{x:.1}" cy="{y:.1}" r="3"><title>{}</title></circle>"#,
                escape(&said)
            );
        }
    }
    svg.push_str("</svg>");
    if lines.len() > 1 {
        svg.push_str(&legend(lines.iter().map(|line| line.name.as_str())));
    }
    svg + "</figure>"
}

/// A row of bars: what it is, and a value of each series.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) values: Vec<Option<f64>>,
}

/// Horizontal bars, those of a row below one another, with their values behind them.
pub(super) fn bars(title: &str, unit: &str, series: &[&str], rows: &[Row]) -> String {
    let values = || rows.iter().flat_map(|row| row.values.iter().flatten());
    let most = values().copied().fold(0.0, f64::max).max(1e-9);
    let row_height = BAR_HEIGHT * series.len().max(1) as f64 + 10.0;
    let height = row_height * rows.len() as f64 + 34.0;
    let said: Vec<String> = rows
        .iter()
        .map(|row| {
            let values: Vec<String> = row.values.iter().flatten().map(|value| number(*value)).collect();
            format!("{} {}", row.name, values.join(" and "))
        })
        .collect();
    let mut svg = open(title, &format!("{unit}; {}", said.join(", ")), height);
    for (index, row) in rows.iter().enumerate() {
        let top = 4.0 + row_height * index as f64;
        let middle = top + (row_height - 10.0) / 2.0 + 4.0;
        let _ = write!(svg, r#"<text class="end" x="{}" y="{middle:.1}">{}</text>"#, BAR_LEFT - 8.0, escape(&row.name));
        for (place, value) in row.values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (y, width) = (top + BAR_HEIGHT * place as f64, value / most * (WIDTH - BAR_LEFT - BAR_RIGHT));
            // One series: a colour for each row, as they are different things; several: one for each series.
            let colour = if series.len() > 1 { place } else { 0 } % COLOURS;
            let _ = write!(
                svg,
                r#"<rect class="bar c{colour}" x="{BAR_LEFT}" y="{y:.1}" width="{:.1}" height="{}"/>"#,
                width.max(1.0),
                BAR_HEIGHT - 3.0
            );
            let (x, y) = (BAR_LEFT + width.max(1.0) + 6.0, y + BAR_HEIGHT - 6.0);
            let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}">{}</text>"#, number(*value));
        }
    }
    let _ = write!(
        svg,
        r#"<text class="middle name" x="{}" y="{:.1}">{}</text></svg>"#,
        f64::midpoint(BAR_LEFT, WIDTH - BAR_RIGHT),
        height - 8.0,
        escape(unit)
    );
    if series.len() > 1 {
        svg.push_str(&legend(series.iter().copied()));
    }
    svg + "</figure>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let said: Vec<String> =
            [0.0, 0.25, 3.0, 12.345, 123.45, 1_234_567.8, -5_000.0].into_iter().map(number).collect();
        assert_eq!(said, ["0", "0.25", "3", "12.35", "123.5", "1,234,568", "-5,000"]);
    }

    #[test]
    fn ticks_are_few_and_round_and_reach_the_value() {
        for value in [0.003, 0.7, 1.0, 7.0, 99.0, 1_000_000.0] {
            let count = (value / step(value)).ceil();
            assert!((1.0..=TICKS as f64).contains(&count), "{value}: {count} steps of {}", step(value));
        }
        assert_eq!((step(7.0), step(99.0)), (2.0, 20.0));
    }

    #[test]
    fn percentiles_lie_in_equal_steps_and_a_hundred_beyond_the_last() {
        let line = Line { name: "all".into(), points: vec![(0.0, 1.0), (90.0, 2.0), (99.0, 3.0), (100.0, 9.0)] };
        let frame = Frame::of(&[line], Across::Percentiles);
        let x: Vec<f64> = [0.0, 90.0, 99.0, 100.0].into_iter().map(|percentile| frame.x(percentile)).collect();
        assert!((x[2] - x[1] - (x[1] - x[0])).abs() < 1e-6, "{x:?}");
        assert!((x[3] - (WIDTH - RIGHT)).abs() < 1e-6 && x[3] > x[2]);
    }

    #[test]
    fn nothing_and_one_point_are_plots_too_and_names_cannot_be_markup() {
        let text = Text { title: "<b>", across: "s", up: "MB" };
        for points in [vec![], vec![(0.0, 0.0)]] {
            let svg = lines(&text, Across::Linear, &[Line { name: "a".into(), points }]);
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<b>"), "{svg}");
        }
        let row = Row { name: "a&b".into(), values: vec![Some(0.0), None] };
        let svg = bars("t", "us", &["x", "y"], &[row]);
        assert!(svg.contains("a&amp;b") && !svg.contains("NaN"), "{svg}");
    }
}
