//! Whatever the clock, the store and the process do: no id twice, none out of order, none at or above what is reserved,
//! and a refusal that is true and changes nothing.

use parley_idgen::{EPOCH_UNIX_MS, Generator, NotYet, RUN_AHEAD_MS_MAX, Worker, unix_ms_of};
use proptest::prelude::*;

const START: u64 = 1_800_000_000_000;

#[derive(Clone, Debug)]
enum Op {
    /// The clock moves by so many milliseconds.
    Step(i64),
    /// So many ids are drawn, each above an id that many milliseconds from the clock (of another worker), or above 0.
    Draw { count: u32, above: Option<(i64, u16, u16)> },
    /// The due mark, if any, is stored.
    Reserve,
    /// The process ends and starts again from what is stored.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let step = prop_oneof![
        4 => 0..3_i64,
        2 => Just(-1_i64),
        2 => Just(-5),
        1 => Just(-1_000),
        1 => Just(-3_600_000),
        1 => Just(3_600_000),
        1 => 0..5_000_i64,
        1 => Just(86_400_000),
    ];
    let count = prop_oneof![4 => 1..20_u32, 1 => 4_000..20_000_u32];
    let above = prop::option::weighted(0.4, (-3_000..3_000_i64, 0..1_024_u16, 0..4_096_u16));
    prop_oneof![
        4 => step.prop_map(Op::Step),
        6 => (count, above).prop_map(|(count, above)| Op::Draw { count, above }),
        3 => Just(Op::Reserve),
        1 => Just(Op::Restart),
    ]
}

/// The world around a generator: a clock that does what it likes, and a store that keeps the mark.
struct World {
    worker: Worker,
    ids: Generator,
    clock: u64,
    stored_mark: u64,
    last: u64,
    given: u64,
}

impl World {
    fn new(worker: Worker) -> World {
        World { worker, ids: Generator::restore(worker, 0), clock: START, stored_mark: 0, last: 0, given: 0 }
    }

    fn store(&mut self, mark: u64) {
        assert!(mark > self.stored_mark, "a mark must rise: {mark} after {}", self.stored_mark);
        assert!(mark <= self.clock + RUN_AHEAD_MS_MAX + 1, "a restart could stall");
        self.stored_mark = mark;
        self.ids.reserved(mark);
    }

    fn draw(&mut self, above: u64) {
        let before = self.ids.clone();
        match self.ids.next(self.clock, above) {
            Ok(id) => {
                assert!(id.get() > self.last, "{id} after {}", self.last);
                assert!(id.get() > above, "{id} is not above {above}");
                assert_eq!(id.parts().worker, self.worker.get());
                assert!(id.unix_ms() < self.stored_mark, "{id} is not below the stored mark");
                assert!(id.unix_ms() <= self.clock + RUN_AHEAD_MS_MAX, "{id} runs too far ahead");
                self.last = id.get();
                self.given += 1;
            }
            Err(refusal) => {
                assert_eq!(self.ids, before, "a refused call changed the generator");
                self.refusal_is_true(refusal, above);
            }
        }
    }

    /// Does on a copy what the refusal asks for, and sees that it helps.
    fn refusal_is_true(&mut self, refusal: NotYet, above: u64) {
        let mut ids = self.ids.clone();
        match refusal {
            NotYet::Unreserved { mark_unix_ms } => {
                ids.reserved(mark_unix_ms);
                assert!(ids.next(self.clock, above).is_ok(), "the mark did not help");
                self.store(mark_unix_ms);
            }
            NotYet::NotBefore { unix_ms } => {
                assert!(unix_ms > self.clock, "it names a time that has come");
                ids.reserved(unix_ms + RUN_AHEAD_MS_MAX + 1);
                assert!(ids.clone().next(unix_ms - 1, above).is_err(), "it names too late a time");
                assert!(ids.next(unix_ms, above).is_ok(), "waiting did not help");
            }
            NotYet::ClockBehind { ms } => {
                assert!(ms > RUN_AHEAD_MS_MAX, "{ms} ms are within the bound");
                ids.reserved(self.clock + ms + RUN_AHEAD_MS_MAX + 1);
                let mended = ids.next(self.clock + ms, above);
                assert!(matches!(mended, Ok(_) | Err(NotYet::NotBefore { .. })), "{mended:?} once the clock is back");
            }
            NotYet::Exhausted => panic!("time is not exhausted at {}", self.clock),
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Step(ms) => self.clock = self.clock.saturating_add_signed(ms),
            Op::Draw { count, above } => {
                let above = above.map_or(0, |(ms, worker, sequence)| {
                    let unix_ms = self.clock.saturating_add_signed(ms).max(EPOCH_UNIX_MS);
                    ((unix_ms - EPOCH_UNIX_MS) << 22) | (u64::from(worker) << 12) | u64::from(sequence)
                });
                for _ in 0..count {
                    self.draw(above);
                }
            }
            Op::Reserve => {
                if let Some(mark) = self.ids.reservation_due(self.clock) {
                    self.store(mark);
                    assert_eq!(self.ids.reservation_due(self.clock), None, "due twice in a row");
                }
            }
            Op::Restart => self.ids = Generator::restore(self.worker, self.stored_mark),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn property_never_twice_never_out_of_order(
        worker in 0..1_024_u16,
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut world = World::new(Worker::new(worker).unwrap());
        for op in ops {
            world.apply(op);
        }
    }

    /// Each of the named steps back, then a restart, then ids again: rising, and none lost to the step once it is over.
    #[test]
    fn property_a_step_back_and_a_restart(
        back in prop_oneof![Just(1_u64), Just(5), Just(1_000), Just(3_600_000)],
        before in 1..10_000_u32,
    ) {
        let mut world = World::new(Worker::MAX);
        world.apply(Op::Reserve);
        world.apply(Op::Draw { count: before, above: None });
        world.apply(Op::Step(-(back as i64)));
        world.apply(Op::Restart);
        let given = world.given;
        world.apply(Op::Draw { count: 2, above: None });
        // The stored mark lies at the bound before the step, so beyond it after: nothing is given.
        prop_assert_eq!(world.given, given);
        world.apply(Op::Step(back as i64 + 1));
        world.apply(Op::Reserve);
        world.apply(Op::Draw { count: 10, above: None });
        prop_assert_eq!(world.given, given + 10);
    }

    /// Without a restart a step back within the bound costs nothing.
    #[test]
    fn property_a_small_step_back_does_not_stall(
        back in prop_oneof![Just(1_u64), Just(5), Just(1_000)],
        before in 1..10_000_u32,
    ) {
        let mut world = World::new(Worker::MAX);
        world.apply(Op::Reserve);
        world.apply(Op::Draw { count: before, above: None });
        world.apply(Op::Step(-(back as i64)));
        world.apply(Op::Draw { count: 1_000, above: None });
        prop_assert_eq!(world.given, u64::from(before) + 1_000);
    }

    /// Taking apart and the order of ids agree.
    #[test]
    fn property_ids_sort_by_time(a in 0..=i64::MAX as u64, b in 0..=i64::MAX as u64) {
        if unix_ms_of(a) < unix_ms_of(b) {
            prop_assert!(a < b);
        }
    }
}
