//! Nodes of the cluster are killed under load: with two of three everything goes on, with one nothing is acknowledged, and
//! what was promised is there afterwards.

use crate::common::keyspace::cluster;
use crate::common::load::under_load;
use crate::common::{Device, RKYV, poll};
use crate::fleet::Fleet;

const LEASE_MS: u32 = 2_000;
const STEP: usize = 100;

#[test]
fn clients_do_not_notice_one_dead_node_and_with_two_nothing_is_acknowledged_until_they_are_back() {
    let fleet = Fleet::start(LEASE_MS);
    under_load(&fleet.target(), |progress| {
        progress.more(STEP);
        let before = (progress.unavailable(), progress.cut());
        cluster().node("kill", 2);
        progress.more(5 * STEP);
        assert_eq!((progress.unavailable(), progress.cut()), before, "errors and cut connections");
        cluster().node("kill", 3);
        poll("the writers to say so", || (0..2).all(|index| fleet.readyz(index).0 == 503));
        poll("the gateway to say so", || fleet.gateway_readyz().0 == 503);
        let acknowledged = progress.acknowledged();
        let mut newcomer = Device::new(&fleet.target(), "dave", RKYV);
        let hello = newcomer.hello(Some(fleet.target().token("dave", 3_600, false)), None);
        assert_eq!(newcomer.open(hello).expect_err("nobody can be let in"), 4003, "retry later");
        assert_eq!(progress.acknowledged(), acknowledged, "without a quorum");
        cluster().heal();
        progress.more(STEP);
    });
    poll("the gateway to be well", || fleet.gateway_readyz().0 == 200);
    fleet.stop();
}
