//! Which bounds a run came to, and how often: a bound that no run comes to is not tested. Nothing here decides anything.

macro_rules! overflows {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal;)*) => {
        /// A bound that is reached, and what lies behind it runs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Overflow {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Overflow {
            /// All of them, in order.
            pub const ALL: [Overflow; [$($name),*].len()] = [$(Overflow::$variant),*];

            /// The name that is printed.
            pub fn name(self) -> &'static str {
                match self { $(Overflow::$variant => $name),* }
            }
        }
    };
}

overflows! {
    /// A queue between shards took no fan-out.
    MeshFull = "mesh-full";
    /// More users are owed a nudge than are remembered one by one: everybody is.
    OwedUsers = "owed-users";
    /// A nudge to everybody took more than one step.
    NudgeSteps = "nudge-steps";
    /// A socket was not read any more while a frame waited.
    AheadPaused = "ahead-paused";
    /// A client sent too much ahead, and was closed.
    AheadClosed = "ahead-closed";
    /// Frames beside a stream waited up to their bound.
    BesideFull = "beside-full";
    /// Entries were dropped: an outbox over its budget, or too many behind a hole.
    EntriesDropped = "entries-dropped";
    /// A backlog was too long.
    Truncated = "truncated";
    /// A frame waited: for a credit, for answers, for room in an outbox.
    FrameWaited = "frame-waited";
    /// A session was too fast.
    RateLimited = "rate-limited";
    /// A page of an inbox ended at its bytes.
    PageOfInbox = "page-of-inbox";
    /// A page of history ended at its bytes.
    PageOfHistory = "page-of-history";
    /// A page of a list of chats ended at its bytes.
    PageOfChats = "page-of-chats";
    /// A group had as many commands as it may.
    BatchCommands = "batch-commands";
    /// A group had as many bytes as it may.
    BatchBytes = "batch-bytes";
    /// As many requests waited in a writer as may.
    WriterParked = "writer-parked";
    /// A writer's cache of chats was full.
    ChatsCached = "chats-cached";
    /// A writer's cache of users was full.
    UsersCached = "users-cached";
    /// A link had as many requests without an answer as it may.
    LinkWindow = "link-window";
}

/// How often a run came to each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overflows([u64; Overflow::ALL.len()]);

impl Overflows {
    /// Counts one.
    pub(crate) fn add(&mut self, overflow: Overflow) {
        self.0[overflow as usize] += 1;
    }

    /// Counts one, if it is.
    pub(crate) fn add_if(&mut self, is: bool, overflow: Overflow) {
        self.0[overflow as usize] += u64::from(is);
    }

    /// How often.
    pub fn of(&self, overflow: Overflow) -> u64 {
        self.0[overflow as usize]
    }
}
