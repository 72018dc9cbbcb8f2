//! Printing a frame shows no token, no ticket and nothing that people wrote to each other.

mod common;

#[test]
fn debug_output_holds_no_secret_and_no_content() {
    let mut shown = String::new();
    for frame in common::client_frames() {
        shown += &format!("{frame:?}\n");
    }
    for frame in common::server_frames() {
        shown += &format!("{frame:?}\n");
    }
    for record in common::to_writer() {
        shown += &format!("{record:?}\n");
    }
    for record in common::to_gateway() {
        shown += &format!("{record:?}\n");
    }
    // Tokens and tickets of the samples; contents as text and as the list of their bytes.
    for secret in ["eyJ", "ticket", "Good morning", "71, 111, 111, 100", "104, 105"] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
    assert!(shown.contains("a1a2a3a4") && shown.contains("body_bytes"), "the rest is there");
}
