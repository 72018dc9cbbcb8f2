//! Where to connect: `ws://host:port/path`.

use std::net::{SocketAddr, ToSocketAddrs};

/// A WebSocket address without TLS, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) address: SocketAddr,
    host: String,
    path: String,
}

impl Url {
    /// Parses and resolves; errors say what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("ws://").ok_or_else(|| format!("{text}: expected ws://HOST:PORT/PATH"))?;
        let (host, path) = match rest.find('/') {
            Some(at) => (&rest[..at], &rest[at..]),
            None => (rest, "/ws"),
        };
        let resolved = host.to_socket_addrs().map_err(|error| format!("{host}: {error} (expected HOST:PORT)"))?;
        // The development key is for loopback; of several addresses IPv4 is what servers listen on by default.
        let mut addresses: Vec<_> = resolved.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let address = *addresses.first().ok_or_else(|| format!("{host}: no address"))?;
        Ok(Self { address, host: host.to_owned(), path: path.to_owned() })
    }

    /// The request that opens a WebSocket.
    pub(crate) fn upgrade(&self, key: &str, subprotocol: &str) -> String {
        let Self { host, path, .. } = self;
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_a_port_and_perhaps_a_path() {
        let url = Url::parse("ws://127.0.0.1:7400/ws").unwrap();
        assert_eq!(url.address, "127.0.0.1:7400".parse::<SocketAddr>().unwrap());
        assert_eq!(Url::parse("ws://127.0.0.1:7400").unwrap(), url);
        assert!(url.upgrade("k", "p").starts_with("GET /ws HTTP/1.1\r\nHost: 127.0.0.1:7400\r\n"));
        for wrong in ["127.0.0.1:7400", "wss://127.0.0.1:1/ws", "ws://127.0.0.1/ws", "ws://"] {
            assert!(Url::parse(wrong).is_err(), "{wrong}");
        }
    }
}
