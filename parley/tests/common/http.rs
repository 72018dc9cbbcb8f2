//! The admin endpoint as an operator's tools see it: plain HTTP, and the text format of Prometheus.

use super::PATIENCE;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Status and body of a GET; `None` when nobody answers.
pub(crate) fn try_get(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body.to_owned()))
}

pub(crate) fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    try_get(addr, path).unwrap_or_else(|| panic!("no answer to GET http://{addr}{path}"))
}

/// One sample of the text format.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: String,
    pub(crate) value: f64,
}

/// Parses the text format strictly (prometheus.io, "exposition formats", 0.0.4).
pub(crate) fn parse_metrics(text: &str) -> Result<Vec<Sample>, String> {
    let is_name = |name: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        !name.is_empty() && name.chars().all(legal) && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let mut samples = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.trim_start().splitn(3, ' ');
            let (kind, name, rest) = (words.next(), words.next(), words.next());
            let good = match kind {
                Some("TYPE") => matches!(rest, Some("counter" | "gauge" | "histogram" | "summary" | "untyped")),
                Some("HELP") => rest.is_some(),
                _ => return Err(format!("not HELP or TYPE: {line}")),
            };
            if !good || !name.is_some_and(is_name) {
                return Err(format!("a bad comment: {line}"));
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').ok_or(format!("no value: {line}"))?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}').ok_or(format!("no closing brace: {line}"))?),
            None => (series, ""),
        };
        let value: f64 = value.parse().map_err(|_| format!("not a number: {line}"))?;
        let good_label = |label: &str| {
            label.split_once('=').is_some_and(|(key, value)| {
                is_name(key) && value.len() >= 2 && value.starts_with('"') && value.ends_with('"')
            })
        };
        if !is_name(name) || !labels.split(',').filter(|label| !label.is_empty()).all(good_label) {
            return Err(format!("a bad name or label: {line}"));
        }
        samples.push(Sample { name: name.to_owned(), labels: labels.to_owned(), value });
    }
    Ok(samples)
}

/// A value summed over its labels; 0 where it is absent.
pub(crate) fn metric(addr: SocketAddr, name: &str) -> u64 {
    let (status, text) = get(addr, "/metrics");
    assert_eq!(status, 200, "{text}");
    let samples = parse_metrics(&text).unwrap_or_else(|why| panic!("/metrics does not parse: {why}"));
    samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value as u64).sum()
}
