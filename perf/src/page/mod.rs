//! A report as one HTML page that needs nothing else: no script, no font, no address. What is drawn follows from the
//! names and shapes in the report (docs/PERFORMANCE.md tells them), so a new scenario has a page without a word here.

mod plot;
#[cfg(test)]
mod tests;

use plot::{Across, Line, Row, Text, escape, number};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

const STYLE: &str = include_str!("style.css");

/// What a page is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) scenario: &'a str,
    /// The command line.
    pub(crate) command: &'a str,
    pub(crate) broken: &'a [String],
}

/// Writes the page.
pub(crate) fn write(path: &Path, run: Run<'_>, report: &Value) -> Result<(), String> {
    std::fs::write(path, render(run, report)).map_err(|error| format!("{}: {error}", path.display()))?;
    eprintln!("plots are in {}", path.display());
    Ok(())
}

/// The page.
pub(crate) fn render(run: Run<'_>, report: &Value) -> String {
    let empty = Map::new();
    let report = report.as_object().unwrap_or(&empty);
    let (scenario, command) = (escape(run.scenario), escape(run.command));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{scenario}: Parley under load</title><style>{STYLE}</style></head><body><main>\
         <h1>{scenario}</h1><p><code>{command}</code></p>"
    );
    if run.broken.is_empty() {
        html.push_str("<p class=\"kept\">Every promise of the run was kept.</p>");
    } else {
        let items: Vec<String> = run.broken.iter().map(|what| format!("<li>{}</li>", escape(what))).collect();
        let _ = write!(html, "<div class=\"broken\"><p>Not kept:</p><ul>{}</ul></div>", items.join(""));
    }
    html.push_str("<div class=\"plots\">");
    for plot in [latencies, over_time, rounds, cpu, parts].into_iter().flat_map(|kind| kind(report)) {
        html.push_str(&plot);
    }
    html.push_str("</div>");
    html.push_str(&table(report));
    html + "</main></body></html>\n"
}

/// `a_name_of` as words.
fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// A title begins with a capital letter.
fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or(String::new(), |first| first.to_uppercase().chain(rest).collect())
}

/// Units that names of fields end in, and how they are said.
const UNITS: [(&str, &str); 7] = [
    ("_mb", "MB"),
    ("_per_s", "a second"),
    ("_ms", "ms"),
    ("_us", "us"),
    ("_cores", "cores"),
    ("_bytes", "bytes"),
    ("_s", "s"),
];

/// A name without its unit, and the unit.
fn unit_of(name: &str) -> (&str, &'static str) {
    let known = UNITS.iter().find_map(|(end, unit)| Some((name.strip_suffix(end)?, *unit)));
    known.unwrap_or((name, "count"))
}

/// The rows of a field that is a list of objects with a number of this name.
fn rows_with<'a>(value: &'a Value, key: &str) -> Option<Vec<&'a Map<String, Value>>> {
    let rows: Vec<_> = value.as_array()?.iter().filter_map(Value::as_object).collect();
    (!rows.is_empty() && rows.iter().all(|row| row.get(key).is_some_and(Value::is_number))).then_some(rows)
}

/// Lists of `percentile` and `ms`, in one plot.
fn latencies(report: &Map<String, Value>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, value) in report {
        let Some(rows) = rows_with(value, "percentile") else { continue };
        let points = rows.iter().filter_map(|row| Some((row["percentile"].as_f64()?, row.get("ms")?.as_f64()?)));
        lines.push(Line { name: words(name.trim_end_matches("_curve")), points: points.collect() });
    }
    let what = if let [only] = &lines[..] { &only.name } else { "latency" };
    let title = format!("{}: so many percent were as fast or faster", capital(what));
    let text = Text { title: &title, across: "percentile", up: "ms" };
    if lines.is_empty() { Vec::new() } else { vec![plot::lines(&text, Across::Percentiles, &lines)] }
}

/// Points by the name of their line.
type Named<'a> = BTreeMap<&'a str, Vec<(f64, f64)>>;

/// Lists with a time `s`: a plot for each unit in them.
fn over_time(report: &Map<String, Value>) -> Vec<String> {
    let mut plots = Vec::new();
    for (list, value) in report {
        let Some(rows) = rows_with(value, "s") else { continue };
        let mut by_unit: BTreeMap<&str, Named<'_>> = BTreeMap::new();
        for row in &rows {
            for (name, value) in row.iter().filter(|(name, _)| *name != "s") {
                let Some(value) = value.as_f64() else { continue };
                let (name, unit) = unit_of(name);
                let point = (row["s"].as_f64().unwrap_or_default(), value);
                by_unit.entry(unit).or_default().entry(name).or_default().push(point);
            }
        }
        for (unit, lines) in by_unit {
            let lines: Vec<Line> = lines.into_iter().map(|(name, points)| Line { name: words(name), points }).collect();
            let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
            let what = match unit {
                "MB" => "Memory over time".to_owned(),
                _ => format!("{} over time", capital(&names.join(", "))),
            };
            let title = if list == "curve" { what } else { format!("{}: {what}", words(list)) };
            let text = Text { title: &title, across: "seconds", up: unit };
            plots.push(plot::lines(&text, Across::Linear, &lines));
        }
    }
    plots
}

/// `rounds`: what each side cost in each round, and their ratio.
fn rounds(report: &Map<String, Value>) -> Vec<String> {
    let Some(rounds) = report.get("rounds").and_then(Value::as_array) else { return Vec::new() };
    let mut plots = Vec::new();
    let numbered = || (1_u32..).zip(rounds);
    for (name, up) in [("cpu_us_each", "us of CPU each"), ("per_s", "a second")] {
        let line = |side: &str| {
            let value = |round: &Value| round.get(side)?.get(name)?.as_f64();
            let points = numbered().filter_map(|(number, round)| Some((f64::from(number), value(round)?))).collect();
            Line { name: side.to_owned(), points }
        };
        let lines: Vec<Line> =
            ["server", "baseline"].map(line).into_iter().filter(|it| !it.points.is_empty()).collect();
        let title = format!("{} in each round", capital(&words(name)));
        let text = Text { title: &title, across: "round", up };
        if !lines.is_empty() {
            plots.push(plot::lines(&text, Across::Linear, &lines));
        }
    }
    let ratio = |(number, round): (u32, &Value)| {
        // A round says it, or it follows from both sides.
        let of = |side: &str| round.get(side)?.get("per_cpu_s")?.as_f64();
        let value = round.get("ratio").and_then(Value::as_f64).or_else(|| Some(of("server")? / of("baseline")?))?;
        Some((f64::from(number), value))
    };
    let points: Vec<(f64, f64)> = numbered().filter_map(ratio).collect();
    if !points.is_empty() {
        let text = Text { title: "Ratio to the baseline in each round", across: "round", up: "ratio" };
        plots.push(plot::lines(&text, Across::Linear, &[Line { name: "ratio".to_owned(), points }]));
    }
    plots
}

/// Fields such as `gateway_cpu_us_per_message` and `writer_cores`: who used how much.
fn cpu(report: &Map<String, Value>) -> Vec<String> {
    let mut plots = Vec::new();
    let mut groups: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for who in ["gateway", "writer", "server", "cluster", "generator"] {
        for (name, value) in report {
            let Some(rest) = name.strip_prefix(who).and_then(|rest| rest.strip_prefix('_')) else { continue };
            let Some(value) = value.as_f64().filter(|_| rest.starts_with("cpu_us_") || rest == "cores") else {
                continue;
            };
            groups.entry(rest.to_owned()).or_default().push(Row { name: who.to_owned(), values: vec![Some(value)] });
        }
    }
    for (what, rows) in groups {
        let (title, unit) = match what.strip_prefix("cpu_us_") {
            Some(per) => (format!("CPU {}", words(per)), format!("us of CPU {}", words(per))),
            None => ("CPU in use".to_owned(), "cores".to_owned()),
        };
        plots.push(plot::bars(&title, &unit, &[""], &rows));
    }
    plots
}

/// Objects of numbers with one unit, such as `kernel_parts_mb`.
fn parts(report: &Map<String, Value>) -> Vec<String> {
    let mut plots = Vec::new();
    for (name, value) in report {
        let Some(object) = value.as_object().filter(|object| object.len() > 1) else { continue };
        let row =
            |(part, value): (&String, &Value)| Some(Row { name: words(part), values: vec![Some(value.as_f64()?)] });
        let rows: Vec<Row> = object.iter().filter_map(row).collect();
        // Bars begin at nothing; what may be below it is in the table.
        if rows.len() == object.len() && rows.iter().all(|row| row.values[0] >= Some(0.0)) {
            let (title, unit) = unit_of(name);
            plots.push(plot::bars(&capital(&words(title)), unit, &[""], &rows));
        }
    }
    plots
}

/// Every figure that is no list.
fn table(report: &Map<String, Value>) -> String {
    let mut html = String::from(
        "<table><caption>All figures</caption><thead><tr><th>field</th><th>value</th></tr></thead><tbody>",
    );
    for (name, value) in report {
        let said = match value {
            Value::Array(list) if list.iter().any(Value::is_object) => continue,
            Value::Number(value) => value.as_f64().map_or(value.to_string(), number),
            Value::String(text) => escape(text),
            Value::Null => "not known".to_owned(),
            other => escape(&other.to_string()),
        };
        let _ = write!(html, "<tr><th scope=\"row\"><code>{}</code></th><td>{said}</td></tr>", escape(name));
    }
    html + "</tbody></table>"
}
