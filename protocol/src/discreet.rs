//! What `{:?}` shows of values that hold a secret or what people wrote: everything but that. A log line that prints a
//! whole frame must not be able to leak.

use crate::Envelope;
use crate::frame::{Hello, Reconnect, Renew, Welcome};
use std::fmt::{Debug, Formatter, Result};

/// Stands where a secret is.
struct Secret;

impl Debug for Secret {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str("***")
    }
}

impl Debug for Hello {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Hello")
            .field("version", &self.version)
            .field("device_id", &self.device_id)
            .field("token", &self.token.as_ref().map(|_| Secret))
            .field("resume", &self.resume.as_ref().map(|_| Secret))
            .field("mark", &self.mark)
            .field("kinds_known", &self.kinds_known)
            .field("client", &self.client)
            .field("act_for", &self.act_for)
            .finish()
    }
}

impl Debug for Renew {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Renew").field("token", &Secret).finish()
    }
}

impl Debug for Welcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Welcome")
            .field("user_id", &self.user_id)
            .field("name", &self.name)
            .field("resume", &Secret)
            .field("resume_expires_at_ms", &self.resume_expires_at_ms)
            .field("server_time_ms", &self.server_time_ms)
            .field("heartbeat_interval_ms", &self.heartbeat_interval_ms)
            .field("payload_bytes_max", &self.payload_bytes_max)
            .field("frame_bytes_max", &self.frame_bytes_max)
            .field("requests_in_flight_max", &self.requests_in_flight_max)
            .finish()
    }
}

impl Debug for Reconnect {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Reconnect")
            .field("delay_ms", &self.delay_ms)
            .field("resume", &Secret)
            .field("resume_expires_at_ms", &self.resume_expires_at_ms)
            .finish()
    }
}

impl Debug for Envelope {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Envelope")
            .field("kind", &self.kind)
            .field("flags", &self.flags)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}
