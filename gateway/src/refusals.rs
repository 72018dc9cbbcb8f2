//! What was refused, in the text format of Prometheus: by reason, as the shards count it, and for tokens and tickets by
//! what was wrong with them, which only the shell knows.

use crate::identity::{TicketError, TokenError};
use gateway_core::stats::Reason;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Declares what an error is called in the metrics. An error that is left out does not compile.
macro_rules! table {
    ($table:ident: $error:ident, $($variant:ident = $reason:literal,)*) => {
        const $table: [($error, &str); [$($reason),*].len()] = [$(($error::$variant, $reason),)*];
        const _: fn($error) = |error| match error {
            $($error::$variant => (),)*
        };
    };
}

table! {
    TOKENS: TokenError,
    Malformed = "malformed",
    Algorithm = "algorithm",
    UnknownKey = "unknown_key",
    Signature = "signature",
    Issuer = "issuer",
    Audience = "audience",
    Expired = "expired",
    NotYet = "not_yet",
    NotLoopback = "not_loopback",
}

table! {
    TICKETS: TicketError,
    Forged = "forged",
    Device = "device",
    Expired = "expired",
    NotLoopback = "not_loopback",
}

/// Tokens and tickets that were refused; all shards count here, as seldom as that is.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    tokens: [AtomicU64; TOKENS.len()],
    tickets: [AtomicU64; TICKETS.len()],
}

impl Refused {
    /// Counts a token.
    pub(crate) fn token(&self, error: TokenError) {
        count(&TOKENS, &self.tokens, error);
    }

    /// Counts a ticket.
    pub(crate) fn ticket(&self, error: TicketError) {
        count(&TICKETS, &self.tickets, error);
    }

    /// Appends both families.
    pub(crate) fn write(&self, text: &mut String) {
        write_family(text, "token", "Access tokens", &TOKENS, &self.tokens);
        write_family(text, "ticket", "Resume tickets", &TICKETS, &self.tickets);
    }
}

fn count<E: PartialEq>(table: &[(E, &str)], counters: &[AtomicU64], error: E) {
    if let Some(place) = table.iter().position(|(known, _)| *known == error) {
        counters[place].fetch_add(1, Ordering::Relaxed);
    }
}

fn write_family<E>(text: &mut String, name: &str, what: &str, table: &[(E, &str)], counters: &[AtomicU64]) {
    let _ = writeln!(text, "# HELP parley_gateway_{name}s_refused_total {what} refused, by what was wrong with them.");
    let _ = writeln!(text, "# TYPE parley_gateway_{name}s_refused_total counter");
    for ((_, reason), counter) in table.iter().zip(counters) {
        let value = counter.load(Ordering::Relaxed);
        let _ = writeln!(text, "parley_gateway_{name}s_refused_total{{reason=\"{reason}\"}} {value}");
    }
}

/// Appends what the shards refused. All reasons are there from the start, so that a rate has a zero to rise from.
pub(crate) fn write_rejected<'a>(text: &mut String, shards: impl Iterator<Item = &'a [AtomicU64; Reason::ALL.len()]>) {
    let _ = writeln!(text, "# HELP parley_gateway_rejected_total What clients sent and was refused, by reason.");
    let _ = writeln!(text, "# TYPE parley_gateway_rejected_total counter");
    for (shard, counts) in shards.enumerate() {
        for (reason, count) in Reason::ALL.iter().zip(counts) {
            let (reason, value) = (reason.label(), count.load(Ordering::Relaxed));
            let _ = writeln!(text, "parley_gateway_rejected_total{{shard=\"{shard}\",reason=\"{reason}\"}} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_place_of_its_own() {
        let refused = Refused::default();
        TOKENS.iter().for_each(|(error, _)| refused.token(*error));
        TICKETS.iter().for_each(|(error, _)| refused.ticket(*error));
        let mut text = String::new();
        refused.write(&mut text);
        let values: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(values.len(), TOKENS.len() + TICKETS.len());
        assert!(values.iter().all(|line| line.ends_with(" 1")), "{text}");
    }
}
