//! The frozen hash that gives every user and chat its partition, and so its one owner.

use crate::{ChatId, UserId};

/// Partitions of the id space; a versioned map assigns each to a (node, shard).
pub const PARTITIONS: u16 = 1024;

/// A partition number, below [`PARTITIONS`].
pub type Partition = u16;

/// The 64-bit finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014; constants: Stafford's variant 13). Frozen:
/// stored data is placed by it.
pub const fn split_mix_64(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The partition of a user: home, inbox and own state.
pub const fn of_user(user: UserId) -> Partition {
    (split_mix_64(user.0) % PARTITIONS as u64) as Partition
}

/// The partition of a chat: home and log.
pub const fn of_chat(chat: ChatId) -> Partition {
    let high = split_mix_64((chat.0 >> 64) as u64);
    (split_mix_64(high ^ chat.0 as u64) % PARTITIONS as u64) as Partition
}

/// The shard of one node that owns a partition while the map is static.
pub const fn shard(partition: Partition, shards: u16) -> u16 {
    partition % shards
}
