//! Identities and names: who logs in for the first time becomes a user, by a unique insert. A user without a name gets
//! the one that a later login asks for, if it is free.

use super::Writer;
use super::cache::{Usage, User};
use super::jobs::{Answered, Job, Judged};
use super::loads::{Need, UniqueState};
use crate::planted::{self, Bug};
use crate::store::{UserRow, identity_key, name_key};
use parley_protocol::check::valid_name;
use parley_protocol::frame::UserName;
use parley_protocol::link::Reply;
use parley_protocol::{ErrorCode, UserId, limits};

/// Refuses an identity that no token can carry, or whose key would be ambiguous.
pub(crate) fn check_identity(issuer: &str, subject: &str) -> Result<(), ErrorCode> {
    let fits = issuer.len() <= limits::TOKEN_BYTES_MAX && subject.len() <= limits::TOKEN_BYTES_MAX;
    if fits && !issuer.contains('\0') && !subject.is_empty() { Ok(()) } else { Err(ErrorCode::BadFrame) }
}

fn user_of(value: u128) -> UserId {
    UserId(value as u64)
}

impl Writer {
    fn unique(&self, key: &str) -> Option<UniqueState> {
        self.uniques.get(key).map(|unique| unique.state).filter(|state| *state != UniqueState::Asked)
    }

    pub(super) fn needs_of_login(&self, job: &Job, (issuer, subject, name): (&str, &str, &str), needs: &mut Vec<Need>) {
        let identity = identity_key(issuer, subject);
        let ask = |key: String, needs: &mut Vec<Need>| {
            // Counted once a job.
            if !job.unique_keys.contains(&key) {
                needs.push(Need::Unique(key));
            }
        };
        match self.unique(&identity).filter(|_| job.unique_keys.contains(&identity)) {
            None => ask(identity, needs),
            Some(UniqueState::Known(Some(value)) | UniqueState::Flight(value)) => {
                let user_id = user_of(value);
                needs.push(Need::User(user_id));
                if valid_name(name) && self.users.get(user_id).is_some_and(User::is_nameless) {
                    ask(name_key(name), needs);
                }
            }
            Some(_) if valid_name(name) => ask(name_key(name), needs),
            Some(_) => {}
        }
    }

    pub(super) fn judge_login(&mut self, to: Answered, (issuer, subject, name): (&str, &str, &str)) -> Judged {
        let identity = identity_key(issuer, subject);
        let known = self.unique(&identity).expect("the job was prepared");
        if let UniqueState::Known(Some(value)) | UniqueState::Flight(value) = known
            && !planted::has(Bug::IdentitiesForgotten)
        {
            let user_id = user_of(value);
            let user = self.users.get(user_id).expect("the job was prepared");
            if user.is_nameless() && self.is_free(name, Some(user_id)) && self.phase == super::Phase::Serving {
                return self.give_name(to, user_id, (issuer, subject, name));
            }
            let reply = if user.exists {
                Reply::LoggedIn(UserName { user_id, name: user.name.as_ref().to_owned() })
            } else {
                // The identity names a user who is not there.
                Reply::Refused(ErrorCode::Damaged)
            };
            self.attach(to, reply);
            return Judged::Done;
        }
        if self.phase != super::Phase::Serving {
            self.attach(to, Reply::Failed);
            return Judged::Done;
        }
        if !self.has_room() {
            return Judged::Stalled;
        }
        let user_id = match self.next_id(0) {
            Ok(id) => UserId(id),
            Err(refusal) => return self.without_id(to, refusal),
        };
        let name = if self.is_free(name, None) { name } else { "" };
        self.write_unique(identity, user_id);
        self.write_user(user_id, (issuer, subject, name));
        let usage = Usage { group_no: self.gathering.group.no, touched: self.tick, ..Usage::default() };
        self.users.insert(user_id, User { exists: true, inbox_head: 0, name: name.into(), usage });
        self.attach(to, Reply::LoggedIn(UserName { user_id, name: name.to_owned() }));
        Judged::Done
    }

    /// Whether a looked-up name can be given to a user now: nobody has it, or it was being given to this very user when
    /// a writer died between the name's key and the user's row.
    fn is_free(&self, name: &str, user_id: Option<UserId>) -> bool {
        valid_name(name)
            && match self.unique(&name_key(name)) {
                Some(UniqueState::Known(None)) => true,
                Some(UniqueState::Known(Some(value))) => user_id == Some(user_of(value)),
                _ => false,
            }
    }

    /// A known user who has no name gets this one, which is free.
    fn give_name(&mut self, to: Answered, user_id: UserId, identity: (&str, &str, &str)) -> Judged {
        if !self.has_room() {
            return Judged::Stalled;
        }
        let name = identity.2;
        self.write_user(user_id, identity);
        let group_no = self.gathering.group.no;
        let user = self.users.get_mut(user_id).expect("the job was prepared");
        user.name = name.into();
        user.usage.group_no = group_no;
        self.attach(to, Reply::LoggedIn(UserName { user_id, name: name.to_owned() }));
        Judged::Done
    }

    /// Puts a user's row into the group, and its name if it has one.
    fn write_user(&mut self, user_id: UserId, (issuer, subject, name): (&str, &str, &str)) {
        if !name.is_empty() {
            self.write_unique(name_key(name), user_id);
        }
        let row = UserRow { user_id, name: name.to_owned(), issuer: issuer.to_owned(), subject: subject.to_owned() };
        self.gathering.bytes += issuer.len() + subject.len() + 2 * name.len();
        self.gathering.commands += 1;
        self.gathering.group.users.push(row);
    }

    fn write_unique(&mut self, key: String, user_id: UserId) {
        let value = u128::from(user_id.0);
        self.uniques.get_mut(&key).expect("the job waits on it").state = UniqueState::Flight(value);
        self.gathering.group.uniques.push((key, value));
    }
}
