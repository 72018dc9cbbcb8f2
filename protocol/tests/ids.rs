//! Ids: their text, the layout of a chat's, and the frozen hash that places them.

use parley_protocol::partition::{self, PARTITIONS, of_chat, of_user};
use parley_protocol::{ChatId, ChatKind, ClientMsgId, MessageId, Posting, UserId};
use proptest::prelude::*;

const USER_MAX: u64 = (1 << 63) - 1;

#[test]
fn the_text_of_an_id_has_one_form() {
    assert_eq!("42".parse(), Ok(UserId(42)));
    assert_eq!(USER_MAX.to_string().parse(), Ok(MessageId(USER_MAX)));
    for bad in ["", "0", "+1", "-1", " 1", "1 ", "1.0", "0x1", "9223372036854775808", "18446744073709551616", "١"] {
        assert!(bad.parse::<UserId>().is_err(), "{bad:?}");
    }
    let hex = "000000000000000000000000000000ff";
    assert_eq!(hex.parse(), Ok(ClientMsgId(255)));
    assert_eq!(ClientMsgId(255).to_string(), hex);
    for bad in ["", "ff", "000000000000000000000000000000FF", "+00000000000000000000000000000ff", &hex[1..]] {
        assert!(bad.parse::<ClientMsgId>().is_err(), "{bad:?}");
    }
}

#[test]
fn the_layout_of_a_chat_id_is_frozen() {
    let text = |chat: Option<ChatId>| chat.unwrap().to_string();
    assert_eq!(text(ChatId::direct(UserId(2), UserId(1))), "40000000000000008000000000000002");
    assert_eq!(text(ChatId::direct(UserId(USER_MAX), UserId(1))), "4000000000000000ffffffffffffffff");
    assert_eq!(
        text(ChatId::direct(UserId(USER_MAX), UserId(USER_MAX - 1))),
        "7fffffffffffffff7fffffffffffffff",
        "63 bits each behind the tag"
    );
    assert_eq!(ChatId::group(1).to_string(), "80000000000000000000000000000001");
    assert_eq!(ChatId::channel(1, Posting::Admins).to_string(), "c0000000000000000000000000000001");
    assert_eq!(ChatId::channel(1, Posting::Everybody).to_string(), "c0000000000000008000000000000001");
}

#[test]
fn what_is_no_chat_id() {
    let none = |text: &str| text.parse::<ChatId>().unwrap().kind().is_none();
    assert!(none("00000000000000000000000000000000") && none("00000000000000000000000000000001"));
    assert!(none("c0000000000000000000000000000000"), "a channel without a number");
    assert!(none("c0000000000000010000000000000001"), "a channel with settings that do not exist");
    assert!(none("80000000000000000000000000000000"), "a group without a number");
    assert!(none("80000000000000008000000000000001"), "a group with something between");
    assert!(none("40000000000000000000000000000002"), "a direct chat with user 0");
    assert!(none("40000000000000010000000000000001"), "not sorted");
    assert!(none("40000000000000008000000000000001"), "with oneself");
    assert_eq!(ChatId::direct(UserId(1), UserId(1)), None);
    assert_eq!(ChatId::direct(UserId(0), UserId(1)), None);
    assert_eq!(ChatId::direct(UserId(1 << 63), UserId(1)), None);
}

/// Stored data is placed by these: a change loses it.
#[test]
fn partitions_are_frozen() {
    // The published test vector of SplitMix64: seed 1234567, first outputs.
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    assert_eq!(partition::split_mix_64(1_234_567), 6_457_827_717_110_365_317);
    assert_eq!(partition::split_mix_64(1_234_567_u64.wrapping_add(golden)), 3_203_168_211_198_807_973);
    let users: Vec<_> = [1, 2, 3, 1_001, USER_MAX].map(|user| of_user(UserId(user))).to_vec();
    assert_eq!(users, GOLDEN_USERS);
    let direct = |a, b| of_chat(ChatId::direct(UserId(a), UserId(b)).unwrap());
    let chats = [direct(1, 2), direct(1, 3), direct(2, 3), direct(1_001, USER_MAX)];
    assert_eq!(chats, GOLDEN_DIRECT);
    let groups: Vec<_> = [1, 4_096, 7_266_900_000_000_000_001].map(|id| of_chat(ChatId::group(id))).to_vec();
    assert_eq!(groups, GOLDEN_GROUPS);
}

// Computed by a second implementation of the same definition.
const GOLDEN_USERS: [u16; 5] = [193, 718, 1005, 724, 679];
const GOLDEN_DIRECT: [u16; 4] = [904, 947, 128, 802];
const GOLDEN_GROUPS: [u16; 3] = [77, 253, 753];

proptest! {
    #[test]
    fn a_direct_chat_is_the_same_from_both_ends(a in 1..=USER_MAX, b in 1..=USER_MAX) {
        prop_assume!(a != b);
        let chat = ChatId::direct(UserId(a), UserId(b)).unwrap();
        prop_assert_eq!(Some(chat), ChatId::direct(UserId(b), UserId(a)));
        prop_assert_eq!(chat.kind(), Some(ChatKind::Direct(UserId(a.min(b)), UserId(a.max(b)))));
        prop_assert_eq!(chat.peer_of(UserId(a)), Some(UserId(b)));
        prop_assert_eq!(chat.to_string().parse(), Ok(chat));
        prop_assert!(of_chat(chat) < PARTITIONS && partition::shard(of_chat(chat), 7) < 7);
    }

    #[test]
    fn any_bits_either_are_a_chat_id_or_not(bits in any::<u128>()) {
        let again = match ChatId(bits).kind() {
            Some(ChatKind::Direct(a, b)) => ChatId::direct(a, b),
            Some(ChatKind::Group(id)) => Some(ChatId::group(id)),
            Some(ChatKind::Channel(id, posting)) => Some(ChatId::channel(id, posting)),
            None => None,
        };
        prop_assert!(again.is_none_or(|again| again.0 == bits), "one id, one text");
    }

    #[test]
    fn channels_come_back(id in 1..=USER_MAX, everybody: bool) {
        let posting = if everybody { Posting::Everybody } else { Posting::Admins };
        let chat = ChatId::channel(id, posting);
        prop_assert_eq!(chat.kind(), Some(ChatKind::Channel(id, posting)));
        prop_assert!(chat.is_channel() && !ChatId::group(id).is_channel());
        prop_assert_eq!(chat.to_string().parse(), Ok(chat));
    }

    #[test]
    fn groups_come_back(id in 1..=USER_MAX) {
        prop_assert_eq!(ChatId::group(id).kind(), Some(ChatKind::Group(id)));
        prop_assert_eq!(ChatId::group(id).peer_of(UserId(id)), None);
    }
}
