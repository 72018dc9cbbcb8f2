//! Random groups of a real writer over a cluster with faults: statements late, lost, in any order, with unknown outcomes;
//! crashes between any two of them; stragglers of dead epochs. At the end everything that was acknowledged is there,
//! exactly once, and the store is whole.

mod common;
mod cql_common;

use cql_common::random::{Run, step};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 220, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_is_there_once(seed in any::<u32>(), steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run::new(u64::from(seed));
        for step in &steps {
            run.take(step);
        }
        run.finish();
    }
}
