//! What a shard counts, for operators. The shell copies it out; nothing here decides anything.

macro_rules! stats {
    ($($(#[doc = $doc:literal])* $kind:ident $name:ident;)*) => {
        /// Counters and gauges of one shard.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Stats {
            /// How many values there are.
            pub const LEN: usize = [$(stringify!($name)),*].len();
            /// Name, Prometheus type and help of each value, in order.
            pub const TABLE: [(&'static str, &'static str, &'static str); Self::LEN] =
                [$((stringify!($name), stringify!($kind), concat!($($doc),*))),*];

            /// The values, in the order of the table.
            pub fn values(&self) -> [u64; Self::LEN] {
                [$(self.$name),*]
            }
        }
    };
}

stats! {
    /// Connections without a session yet.
    gauge lobby_connections;
    /// Sessions.
    gauge sessions;
    /// Users with a session here.
    gauge user_homes;
    /// Chat homes in memory.
    gauge chat_homes;
    /// Requests on the link without an answer.
    gauge link_unanswered;
    /// 1 while the link to the storage-writer is open.
    gauge link_up;
    /// 1 while the storage tier takes commands, as it said last.
    gauge storage_ready;
    /// Times the link was opened.
    counter link_opened_total;
    /// Requests refused before a session: bad heads, origins, tokens, deadlines.
    counter lobby_rejected_total;
    /// Sessions opened with a token.
    counter logins_total;
    /// Sessions opened with a ticket.
    counter resumes_total;
    /// Frames from clients.
    counter client_frames_total;
    /// Commands answered as durable.
    counter commands_sent_total;
    /// Error frames.
    counter errors_total;
    /// Inbox entries put into streams.
    counter entries_total;
    /// Entries held behind a hole.
    counter entries_held_total;
    /// Live entries dropped, to be read later.
    counter entries_dropped_total;
    /// Pages of inboxes read.
    counter inbox_reads_total;
    /// Backlogs truncated.
    counter truncated_total;
    /// Nudges sent for fan-out that found no room.
    counter nudges_total;
    /// Times a client's frame waited for room in a queue that it feeds.
    counter parks_total;
    /// Times a client's socket was not read while its frame waited.
    counter pauses_total;
    /// Sessions closed by the gateway with a code that is an error of the client.
    counter closed_violation_total;
    /// Sessions closed as stalled readers.
    counter closed_stalled_total;
    /// Sessions closed for silence.
    counter closed_silent_total;
}
