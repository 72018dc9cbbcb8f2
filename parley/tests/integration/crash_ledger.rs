//! kill -9 under load, with a ledger: every message that was acknowledged is in the history once, in order, and reaches
//! every device, whatever was killed meanwhile.

use crate::common::Server;
use crate::common::load::under_load;

/// Messages acknowledged between two kills.
const STEP: usize = 150;

fn survive(mut server: Server, rounds: usize, mut crash: impl FnMut(&mut Server, usize)) {
    let acknowledged = under_load(&server.target(), |progress| {
        for round in 0..rounds {
            progress.more(STEP);
            if round + 1 == rounds {
                progress.end_writing();
            }
            crash(&mut server, round);
        }
    });
    assert!(acknowledged >= rounds * STEP);
    server.stop();
    server.check_store();
}

#[test]
fn kill_9_of_writer_and_gateway_in_turn() {
    survive(Server::apart(), 8, |server, round| {
        match round % 4 {
            0 => server.kill_gateway(),
            2 => {
                server.kill_writer();
                server.kill_gateway();
            }
            // The last one too: the sessions live on, and nothing but the gateway can know what they miss.
            _ => server.kill_writer(),
        }
        server.start();
    });
}

#[test]
fn kill_9_of_everything_in_one_process() {
    survive(Server::up(), 4, |server, _| {
        server.kill_gateway();
        server.start();
    });
}
