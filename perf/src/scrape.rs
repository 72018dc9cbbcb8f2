//! Counters from a server's `/metrics`, so that a run can say what it cost the cluster.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A server that does not answer within this has other sorrows.
const PATIENCE: Duration = Duration::from_secs(5);
/// The whole answer, at the most.
const BYTES_MAX: u64 = 4 << 20;
const REQUESTS: &str = "parley_cql_requests_total{kind=\"";
/// Renewals of the lease go by the clock, not by messages.
const LEASE: &str = "lease";

/// Requests to the cluster since the server's start, by kind.
pub(crate) type Requests = BTreeMap<String, u64>;

/// Asks a server.
pub(crate) fn requests(admin: SocketAddr) -> Result<Requests, String> {
    let said = |error: std::io::Error| format!("http://{admin}/metrics: {error}");
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).map_err(said)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").map_err(said)?;
    let mut text = String::new();
    stream.take(BYTES_MAX).read_to_string(&mut text).map_err(said)?;
    let requests = parse(&text);
    if requests.is_empty() { Err(format!("http://{admin}/metrics: it counts no CQL requests")) } else { Ok(requests) }
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
}
