//! The admin endpoint: `/healthz`, `/readyz` and `/metrics` over plain HTTP/1.1, on an address and a thread of its own.
//! One request a connection, one connection at a time, all of it bounded: a scraper asks a few times a minute.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A head at the most.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Headers at the most.
const HEADERS_MAX: usize = 64;
/// From the accept to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// After an accept that failed, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the endpoint shows.
pub(crate) trait Source: Send + 'static {
    /// Why the process cannot serve; nothing when it can.
    fn not_ready(&self) -> Option<String>;
    /// Everything that is counted, in the text format of Prometheus.
    fn metrics(&self) -> String;
}

/// Listens and answers until the process ends. Gives the address, which tells the port where 0 was asked for.
pub(crate) fn serve(address: SocketAddr, source: impl Source) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    // Whoever breaks off, or sends what is no request, gets no answer and harms nobody.
                    let _ = answer(stream, &source);
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin endpoint cannot accept");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    })?;
    Ok(address)
}

fn answer(mut stream: TcpStream, source: &impl Source) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let (status, text) = match read_path(&mut stream, deadline)? {
        Ok(path) => match path.as_str() {
            "/healthz" => ("200 OK", "ok\n".to_owned()),
            "/readyz" => match source.not_ready() {
                None => ("200 OK", "ready\n".to_owned()),
                Some(reason) => ("503 Service Unavailable", format!("not ready: {reason}\n")),
            },
            "/metrics" => ("200 OK", source.metrics()),
            _ => ("404 Not Found", "there are /healthz, /readyz and /metrics\n".to_owned()),
        },
        Err(status) => (status, "one GET of /healthz, /readyz or /metrics\n".to_owned()),
    };
    let bytes = text.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: \
         {bytes}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

/// Reads a head; the path of a GET, or the status that refuses it.
fn read_path(stream: &mut TcpStream, deadline: Instant) -> io::Result<Result<String, &'static str>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err("408 Request Timeout"));
        }
        stream.set_read_timeout(Some(left))?;
        let read = match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        head.extend_from_slice(&chunk[..read]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head) {
            Ok(httparse::Status::Complete(_)) => {
                let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
                let get = matches!(request.method, Some("GET"));
                return Ok(if get { Ok(path) } else { Err("405 Method Not Allowed") });
            }
            Ok(httparse::Status::Partial) if head.len() <= HEAD_BYTES_MAX => {}
            Ok(httparse::Status::Partial) => return Ok(Err("431 Request Header Fields Too Large")),
            Err(_) => return Ok(Err("400 Bad Request")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Red;

    impl Source for Red {
        fn not_ready(&self) -> Option<String> {
            Some("no room on the disk".to_owned())
        }

        fn metrics(&self) -> String {
            "parley_test 1\n".to_owned()
        }
    }

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(request).expect("it reads");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }

    #[test]
    fn it_answers_what_it_knows_and_refuses_the_rest() {
        let address = serve(SocketAddr::from(([127, 0, 0, 1], 0)), Red).expect("a free port");
        assert!(ask(address, b"GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        let red = ask(address, b"GET /readyz?verbose HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(red.starts_with("HTTP/1.1 503") && red.ends_with("not ready: no room on the disk\n"), "{red}");
        assert!(ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\nparley_test 1\n"));
        assert!(ask(address, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask(address, b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(ask(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").starts_with("HTTP/1.1 400"));
        let endless = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &vec![b'a'; 3 * HEAD_BYTES_MAX]].concat();
        let refused = ask(address, &endless);
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
        assert!(ask(address, b"GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"), "it goes on");
    }
}
