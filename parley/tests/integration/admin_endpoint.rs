//! What an operator sees: liveness, readiness with its reason, metrics in the text format of Prometheus.

use crate::common::device::direct;
use crate::common::http::{get, parse_metrics, try_get};
use crate::common::{JSON, Server, poll};

#[test]
fn up_answers_on_its_admin_address() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post(chat, "counted");
    let admin = server.admin.addr;
    assert_eq!(get(admin, "/healthz").0, 200);
    let (status, body) = get(admin, "/readyz");
    assert_eq!(status, 200, "{body}");
    assert_eq!(get(admin, "/nothing").0, 404);
    let (status, text) = get(admin, "/metrics");
    assert_eq!(status, 200);
    let samples = parse_metrics(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    let driver = samples.iter().find(|sample| sample.name == "parley_gateway_driver").expect("the driver is shown");
    match std::env::var("PARLEY_TEST_DRIVER").as_deref() {
        Ok(asked @ ("epoll" | "uring")) => assert_eq!(driver.labels, format!("driver=\"{asked}\"")),
        _ => assert!(["driver=\"epoll\"", "driver=\"uring\""].contains(&driver.labels.as_str()), "{driver:?}"),
    }
    let sum = |name: &str| samples.iter().filter(|it| it.name == name).map(|it| it.value).sum::<f64>();
    assert_eq!(sum("parley_gateway_sessions"), 2.0);
    assert_eq!(sum("parley_gateway_commands_sent_total"), 1.0);
    assert!(samples.iter().any(|sample| sample.name.starts_with("parley_writer_")), "the writer's, too\n{text}");
    // Nothing that anybody said or is called is in there.
    assert!(!text.contains("counted") && !text.contains("alice"));
}

#[test]
fn apart_each_has_its_own_and_the_gateway_is_red_without_the_writer() {
    let mut server = Server::apart();
    let (gateway, writer) = (server.admin.addr, server.writer_admin.addr);
    let ready = |addr| try_get(addr, "/readyz").map(|(status, _)| status);
    poll("the gateway to be ready", || ready(gateway) == Some(200));
    assert_eq!(ready(writer), Some(200));
    for addr in [gateway, writer] {
        assert_eq!(get(addr, "/healthz").0, 200);
        let (_, text) = get(addr, "/metrics");
        assert!(!parse_metrics(&text).unwrap_or_else(|why| panic!("{why}\n{text}")).is_empty());
    }
    server.kill_writer();
    poll("the gateway to be red", || ready(gateway) == Some(503));
    let (_, reason) = get(gateway, "/readyz");
    assert!(reason.contains("storage"), "it says why: {reason}");
    assert_eq!(get(gateway, "/healthz").0, 200, "alive all the same");
    server.start();
    poll("the gateway to be green again", || ready(gateway) == Some(200));
}
