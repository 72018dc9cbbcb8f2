//! What the checker says in the end: counts, and the first findings in words.

/// Findings that are kept in words.
const FINDINGS_MAX: usize = 50;

/// How a promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Acknowledged or stored, and not there or not received.
    Lost,
    /// In a log twice, acknowledged with two ids, or received twice.
    Duplicated,
    /// Received or stored in another order or at another place.
    Reordered,
    /// Never sent, refused, changed, not for that user; a mark that falls; a history that cannot be.
    Wrong,
}

/// The judgement of a run.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Commands that were acknowledged.
    pub acknowledged: u64,
    /// Events that devices received by their streams, those above a mark that came again included.
    pub delivered: u64,
    /// Commands without any answer.
    pub unknown: u64,
    /// Commands that were refused for good.
    pub refused: u64,
    /// [`Kind::Lost`], once for each device.
    pub lost: u64,
    /// [`Kind::Duplicated`].
    pub duplicated: u64,
    /// [`Kind::Reordered`].
    pub reordered: u64,
    /// [`Kind::Wrong`].
    pub wrong: u64,
    /// The first findings, for people.
    pub findings: Vec<String>,
}

impl Verdict {
    pub(super) fn find(&mut self, kind: Kind, what: impl FnOnce() -> String) {
        self.find_many(kind, 1, what);
    }

    pub(super) fn find_many(&mut self, kind: Kind, times: u64, what: impl FnOnce() -> String) {
        *match kind {
            Kind::Lost => &mut self.lost,
            Kind::Duplicated => &mut self.duplicated,
            Kind::Reordered => &mut self.reordered,
            Kind::Wrong => &mut self.wrong,
        } += times;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(format!("{kind:?}: {}", what()));
        }
    }

    /// No promise was broken.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.wrong == 0
    }
}
