//! Makes a failing plan smaller while it goes on failing: fewer events, fewer people, fewer kinds of faults and actions.

use crate::plan::{Action, Fault, Plan};
use crate::{Violation, run};

/// Runs spent on one plan.
const RUNS_MAX: usize = 400;

/// The smallest plan found that is seen by the same oracle, with what that saw.
pub fn shrink(plan: &Plan, violation: &Violation) -> (Plan, Violation) {
    let mut best = (plan.clone(), violation.clone());
    let mut runs = 0;
    let mut attempt = |best: &mut (Plan, Violation), narrowed: Plan| -> bool {
        runs += 1;
        if narrowed == best.0 || runs > RUNS_MAX {
            return false;
        }
        let found = run(&narrowed, false).violation.filter(|found| found.oracle == violation.oracle);
        let fails = found.is_some();
        if let Some(found) = found {
            *best = (narrowed, found);
        }
        fails
    };
    loop {
        let before = best.0.clone();
        // What happened after the violation did not make it; what is only seen at rest may need less storm.
        let ticks = best.1.tick.min(best.0.ticks);
        for ticks in [ticks, ticks / 2, ticks * 3 / 4, ticks * 9 / 10] {
            let narrowed = Plan { ticks: ticks.max(1), ..best.0.clone() };
            if ticks < best.0.ticks && attempt(&mut best, narrowed) {
                break;
            }
        }
        for fault in Fault::ALL {
            let mut narrowed = best.0.clone();
            narrowed.faults[*fault as usize] = 0;
            attempt(&mut best, narrowed);
        }
        for action in Action::ALL {
            let mut narrowed = best.0.clone();
            narrowed.actions[*action as usize] = 0;
            attempt(&mut best, narrowed);
        }
        for users in [2, 3, best.0.users / 2, best.0.users.saturating_sub(1)] {
            let narrowed = Plan { users, ..best.0.clone() };
            if users >= 2 && users < best.0.users && attempt(&mut best, narrowed) {
                break;
            }
        }
        for shards in 1..best.0.shards {
            let narrowed = Plan { shards, ..best.0.clone() };
            if attempt(&mut best, narrowed) {
                break;
            }
        }
        if best.0 == before {
            return best;
        }
    }
}
