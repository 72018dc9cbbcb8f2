//! `parley send`: one message, done when it is durable.

use super::talk::{Talk, command_name, print_frame, print_line};
use crate::cli::SendArgs;
use crate::client::ClientError;
use parley_protocol::body::MessageBody;
use parley_protocol::{Body, ClientFrame, ServerFrame, frame, limits};
use std::io::Read;

pub(super) fn run(args: &SendArgs) -> Result<(), ClientError> {
    let payload = payload(&args.text, args.content_type.starts_with("text/"))?;
    let mut talk = Talk::open(&args.script)?;
    let chat_id = talk.chat(&args.to)?;
    let mentions = if args.mention.is_empty() { Vec::new() } else { talk.users(&args.mention)? };
    let client_msg_id = command_name(args.client_msg_id);
    let body = MessageBody {
        content_type: args.content_type.clone(),
        payload,
        reply_to: args.reply_to,
        mentions,
        expires_at_ms: args.expires_at_ms,
        ..MessageBody::default()
    };
    let envelope = Body::Message(body).to_envelope();
    let sent = talk
        .command(client_msg_id, ClientFrame::Send(frame::Send { chat_id, client_msg_id, envelope }))
        .map_err(|error| match error {
            ClientError::TimedOut(what) => ClientError::TimedOut(format!(
                "{what}\nwhether it was sent is not known; repeat it with --client-msg-id {client_msg_id}"
            )),
            error => error,
        })?;
    talk.session.close()?;
    if args.script.json {
        return print_frame(&ServerFrame::Sent(sent));
    }
    print_line(&format!("sent: chat {} seq {} message {}", sent.chat_id, sent.seq, sent.message_id))
}

/// What is sent: the text, or the whole standard input; of a text without the line break that ends it.
fn payload(text: &str, is_text: bool) -> Result<Vec<u8>, ClientError> {
    if text != "-" {
        return Ok(text.as_bytes().to_vec());
    }
    let mut bytes = Vec::new();
    let limit = limits::PAYLOAD_BYTES_MAX as u64;
    let read = std::io::stdin().lock().take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| ClientError::Local(format!("cannot read the standard input: {error}")))?;
    if bytes.len() as u64 > limit {
        return Err(ClientError::Asked(format!("the standard input is longer than {limit} bytes")));
    }
    if is_text && bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(ClientError::Usage("the standard input is empty: there is nothing to send".to_owned()));
    }
    Ok(bytes)
}
