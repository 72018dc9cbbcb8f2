//! Look-ups of commands by name. Those that wait for the same partition share a request.

use super::known::ScanId;
use super::{Engine, Owner};
use crate::cql::rows::{COMMANDS_BUCKET, LEVEL_CREATIONS, Partition, Read, Row, command_bucket, command_level};
use crate::store::{CommandName, CommandRow};
use parley_protocol::{ChatId, ClientMsgId, UserId};
use std::collections::VecDeque;

/// Names in one read.
const NAMES_MAX: usize = 100;

/// A partition of names: scope, level, bucket.
pub(super) type NamesKey = (u128, u8, u32);

/// One that is looked for, and the load that it is for.
type Wanted = (u64, UserId, ClientMsgId);

/// Look-ups in one partition: a read is under way, and the next gathers.
#[derive(Debug, Default)]
pub(super) struct NamesLane {
    asked: Vec<Wanted>,
    waiting: VecDeque<Wanted>,
    /// So many of those that wait ask alone: they asked together, and something did not decode.
    alone: usize,
}

impl Engine {
    /// Reads all names of a chat for a look-up in it, if that pays. They lie in one partition as long as the chat has
    /// one level.
    pub(super) fn scan_names(&mut self, load: u64, chat_id: ChatId, head: u64) -> bool {
        if chat_id.0 == 0 || command_level(head) > 0 {
            return false;
        }
        let Some(scan) = self.known_names.begin_scan(chat_id, head) else { return false };
        for name in self.touched.names.keys().filter(|name| name.chat_id == chat_id) {
            self.known_names.enter(name);
        }
        let partition = Partition::Commands { scope: chat_id.0, level: 0, bucket: 0 };
        self.read(Read::All(partition), Owner::Scan(load, chat_id, scan));
        true
    }

    pub(super) fn names_scanned(&mut self, load: u64, chat_id: ChatId, scan: ScanId, rows: &[Row]) {
        let found = || {
            rows.iter().filter_map(|row| match row {
                Row::Command(row) => Some(row),
                _ => None,
            })
        };
        self.known_names.scanned(chat_id, scan, found().map(|row| &row.name));
        let wanted = self.name_of(load);
        self.name_read(load, found().find(|row| Some(row.name) == wanted).copied());
    }

    /// A name that nobody asked for does not decode: the look-up asks for its own. Had that been used, it would be among
    /// the names that the scan was to read, so in the first level.
    pub(super) fn scan_damaged(&mut self, load: u64, chat_id: ChatId) {
        self.known_names.give_up(chat_id);
        if let Some(name) = self.name_of(load) {
            self.find_on(load, name, COMMANDS_BUCKET);
        }
    }

    /// Starts a look-up; gives the number of partitions that will answer. `head_max` is not below the chat's head.
    pub(super) fn look_up(&mut self, load: u64, name: &CommandName, head_max: u64) -> usize {
        let keys: Vec<NamesKey> = if name.chat_id.0 == 0 {
            let bucket = command_bucket(LEVEL_CREATIONS, name.client_msg_id);
            vec![(u128::from(name.sender.0), LEVEL_CREATIONS, bucket)]
        } else {
            let levels = 0..=command_level(head_max);
            levels.map(|level| (name.chat_id.0, level, command_bucket(level, name.client_msg_id))).collect()
        };
        for key in &keys {
            let lane = self.names.entry(*key).or_default();
            lane.waiting.push_back((load, name.sender, name.client_msg_id));
            if lane.asked.is_empty() {
                self.ask_names(*key);
            }
        }
        keys.len()
    }

    fn ask_names(&mut self, key: NamesKey) {
        let Some(lane) = self.names.get_mut(&key) else { return };
        if lane.waiting.is_empty() {
            self.names.remove(&key);
            return;
        }
        let asked = if lane.alone > 0 { 1 } else { lane.waiting.len().min(NAMES_MAX) };
        lane.alone = lane.alone.saturating_sub(1);
        lane.asked = lane.waiting.drain(..asked).collect();
        let names = lane.asked.iter().map(|(_, sender, client_msg_id)| (*sender, *client_msg_id)).collect();
        let (scope, level, bucket) = key;
        self.read(Read::Commands { scope, level, bucket, names }, Owner::Names(key));
    }

    pub(super) fn names_read(&mut self, key: NamesKey, rows: &[Row]) {
        let Some(lane) = self.names.get_mut(&key) else { return };
        let asked = std::mem::take(&mut lane.asked);
        self.ask_names(key);
        for (load, sender, client_msg_id) in asked {
            let found = rows.iter().find_map(|row| match row {
                Row::Command(row) if (row.name.sender, row.name.client_msg_id) == (sender, client_msg_id) => Some(*row),
                _ => None,
            });
            self.name_read(load, found);
        }
    }

    pub(super) fn names_damaged(&mut self, key: NamesKey, why: &str) {
        let Some(lane) = self.names.get_mut(&key) else { return };
        let asked = std::mem::take(&mut lane.asked);
        if asked.len() > 1 {
            // One of them it is, and the others must not suffer for it.
            lane.alone = asked.len();
            asked.into_iter().rev().for_each(|wanted| lane.waiting.push_front(wanted));
            return self.ask_names(key);
        }
        self.ask_names(key);
        for (load, ..) in asked {
            self.load_damaged(load, why.to_owned());
        }
    }

    /// The row of a name that a look-up found, as the writer knows it.
    pub(super) fn named(name: &CommandName, row: CommandRow) -> CommandRow {
        CommandRow { name: *name, ..row }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cql::engine::EngineOptions;
    use crate::cql::rows::{Statement, StatementError};
    use crate::store::{StoreRequest, StoreResult};

    const CHAT: ChatId = ChatId(7);

    fn find(number: u128) -> StoreRequest {
        let client_msg_id = ClientMsgId(number);
        StoreRequest::FindCommand(CommandName { chat_id: CHAT, sender: UserId(1), client_msg_id })
    }

    fn engine() -> Engine {
        let mut engine = Engine::new(EngineOptions::default(), 1, 1);
        engine.set_lease(Some(u64::MAX));
        while let Some((id, _)) = engine.poll_statement(0) {
            engine.handle_result(0, id, Ok(Vec::new()));
        }
        engine.facts.of(CHAT).head = Some(5);
        engine
    }

    #[test]
    fn those_who_ask_together_do_not_suffer_for_a_damaged_one() {
        let mut engine = engine();
        // No scan pays in a chat that is long.
        engine.facts.of(CHAT).head = Some(16_384);
        (1..=4).for_each(|op| engine.submit(0, op, find(u128::from(op))));
        let mut asked = Vec::new();
        while let Some((id, statement)) = engine.poll_statement(0) {
            let Statement::Read(Read::Commands { names, .. }) = statement else { panic!("a look-up") };
            let numbers: Vec<u128> = names.iter().map(|(_, name)| name.0).collect();
            let damaged = numbers.contains(&3);
            let rows = if damaged { Err(StatementError::Damaged("a row".to_owned())) } else { Ok(Vec::new()) };
            asked.push(numbers);
            engine.handle_result(0, id, rows);
            engine.check_invariants();
        }
        assert_eq!(asked, [vec![1], vec![2, 3, 4], vec![2], vec![3], vec![4]]);
        let mut done = Vec::new();
        engine.completions(&mut done);
        let found = |op| (op, StoreResult::Found(None));
        assert_eq!(done, [found(1), found(2), (3, StoreResult::Damaged("a row".to_owned())), found(4)]);
    }

    #[test]
    fn a_damaged_name_is_only_its_own_look_up_s() {
        let mut engine = engine();
        engine.submit(0, 1, find(1));
        let (id, statement) = engine.poll_statement(0).expect("a question");
        assert!(matches!(statement, Statement::Read(Read::All(Partition::Commands { .. }))), "{statement:?}");
        engine.handle_result(0, id, Err(StatementError::Damaged("a row".to_owned())));
        let mut done = Vec::new();
        for op in [1, 2] {
            if op == 2 {
                engine.submit(0, op, find(2));
            }
            let (id, statement) = engine.poll_statement(0).expect("a question");
            assert!(matches!(statement, Statement::Read(Read::Commands { .. })), "{statement:?}");
            engine.handle_result(0, id, Ok(Vec::new()));
            engine.check_invariants();
            engine.completions(&mut done);
            assert_eq!(done.pop(), Some((op, StoreResult::Found(None))));
        }
    }
}
