//! Every encoding gives back what it was given.

use parley_protocol::wire::{Encoding, decode_client_frame, encode_client_frame};
use parley_protocol::*;

#[test]
fn a_message_survives_both_encodings() {
    let body = MessageBody { content_type: "text/plain".into(), payload: b"hello".to_vec(), ..Default::default() };
    let frame = ClientFrame::Send(frame::Send {
        chat_id: ChatId::direct(UserId(1), UserId(2)).unwrap(),
        client_msg_id: ClientMsgId(7),
        envelope: Body::Message(body).to_envelope(),
    });
    for encoding in [Encoding::Rkyv, Encoding::Json] {
        let mut bytes = Vec::new();
        encode_client_frame(encoding, &frame, &mut bytes);
        if encoding == Encoding::Json {
            println!("{}", String::from_utf8_lossy(&bytes));
        }
        assert_eq!(decode_client_frame(encoding, &bytes).unwrap(), frame, "{encoding:?}");
    }
    let hello = r#"{"type":"hello","version":1,"device_id":"00000000000000000000000000000001","mark":5}"#;
    println!("{:?}", decode_client_frame(Encoding::Json, hello.as_bytes()));
    assert!(decode_client_frame(Encoding::Json, br#"{"type":"ping","nonce":1,"x":2}"#).is_err());
    println!("{:?}", decode_client_frame(Encoding::Json, br#"{"type":"group_change","chat_id":"00000000000000000000000000000001","client_msg_id":"00000000000000000000000000000001","change":{"leave":{}}}"#));
}
