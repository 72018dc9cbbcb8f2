//! Counters from a server's `/metrics`, so that a run can say what it cost the cluster, and what was refused.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A server that does not answer within this has other sorrows.
const PATIENCE: Duration = Duration::from_secs(5);
/// The whole answer, at the most.
const BYTES_MAX: u64 = 4 << 20;
const REQUESTS: &str = "parley_cql_requests_total{kind=\"";
const REJECTED: &str = "parley_gateway_rejected_total{";
/// Renewals of the lease go by the clock, not by messages.
const LEASE: &str = "lease";

/// Requests to the cluster since the server's start, by kind.
pub(crate) type Requests = BTreeMap<String, u64>;

/// Asks a server.
pub(crate) fn requests(admin: SocketAddr) -> Result<Requests, String> {
    let requests = parse(&metrics(admin)?);
    if requests.is_empty() { Err(format!("http://{admin}/metrics: it counts no CQL requests")) } else { Ok(requests) }
}

/// What a gateway refused for this reason since its start, over all shards.
pub(crate) fn rejected(admin: SocketAddr, reason: &str) -> Result<u64, String> {
    Ok(parse_rejected(&metrics(admin)?, reason))
}

fn parse_rejected(text: &str, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    let lines = text.lines().filter_map(|line| line.strip_prefix(REJECTED)?.split_once("} "));
    let of_reason = lines.filter(|(labels, _)| labels.split(',').any(|own| own == label));
    of_reason.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
}

fn metrics(admin: SocketAddr) -> Result<String, String> {
    let said = |error: std::io::Error| format!("http://{admin}/metrics: {error}");
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).map_err(said)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").map_err(said)?;
    let mut text = String::new();
    stream.take(BYTES_MAX).read_to_string(&mut text).map_err(said)?;
    Ok(text)
}

fn parse(text: &str) -> Requests {
    let lines = text.lines().filter_map(|line| line.strip_prefix(REQUESTS)?.split_once("\"} "));
    let counted = lines.filter_map(|(kind, count)| Some((kind.to_owned(), count.trim().parse().ok()?)));
    counted.filter(|(kind, _)| kind != LEASE).collect()
}

/// What was counted between two looks; kinds without a request are left out.
pub(crate) fn between(start: &Requests, end: &Requests) -> Requests {
    let counted = end.iter().map(|(kind, count)| (kind, count - start.get(kind).copied().unwrap_or(0).min(*count)));
    counted.filter(|(_, count)| *count > 0).map(|(kind, count)| (kind.clone(), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_found_by_kind_without_those_for_the_lease() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# TYPE parley_cql_requests_total counter\n\
                    parley_cql_requests_total{kind=\"write_events\"} 7\n\
                    parley_cql_requests_total{kind=\"read_commands\"} 3\n\
                    parley_cql_requests_total{kind=\"lease\"} 99\nparley_cql_in_flight 5\n";
        let start = parse(text);
        assert_eq!(start, [("read_commands".to_owned(), 3), ("write_events".to_owned(), 7)].into());
        let end = parse(&text.replace("} 7", "} 10"));
        assert_eq!(between(&start, &end), [("write_events".to_owned(), 3)].into());
    }

    #[test]
    fn refusals_of_one_reason_are_summed_over_the_shards() {
        let text = "parley_gateway_rejected_total{shard=\"0\",reason=\"token\"} 2\n\
                    parley_gateway_rejected_total{shard=\"1\",reason=\"token\"} 3\n\
                    parley_gateway_rejected_total{reason=\"token_expired\"} 50\n\
                    parley_gateway_tokens_refused_total{reason=\"token\"} 700\n";
        assert_eq!((parse_rejected(text, "token"), parse_rejected(text, "origin")), (5, 0));
    }
}
