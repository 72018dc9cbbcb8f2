//! No two writers may serve at the same time, whatever is lost, late or stopped, and however their clocks run; and when
//! that ends, one of them serves.

mod lease_world;

use lease_world::{World, run, weather};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn no_two_serve_at_once_and_one_does_in_the_end(weather in weather()) {
        let takings = run(World::new(weather)).map_err(TestCaseError::fail)?;
        prop_assert!(takings > 0);
    }
}
