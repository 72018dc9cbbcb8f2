//! How long one id takes, and what a burst at the format's ceiling (4,096 ids a millisecond) leaves of a core.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use parley_idgen::{Generator, Worker};
use std::hint::black_box;

const NOW: u64 = 1_800_000_000_000;

fn generator() -> Generator {
    let mut ids = Generator::restore(Worker::MAX, 0);
    ids.reserved(u64::MAX);
    ids
}

/// One millisecond of the format's ceiling: 4,096 calls; it must take well under a millisecond.
fn one_millisecond(c: &mut Criterion) {
    let mut group = c.benchmark_group("idgen");
    group.throughput(Throughput::Elements(4_096));
    group.bench_function("4096_ids_of_a_millisecond", |b| {
        let mut ids = generator();
        let mut now = NOW;
        b.iter(|| {
            now += 1;
            for _ in 0..4_096 {
                black_box(ids.next(black_box(now), 0).expect("the clock moves with the ids"));
            }
        });
    });
    group.bench_function("4096_ids_each_above_the_last_of_its_chat", |b| {
        let mut ids = generator();
        let mut now = NOW;
        let mut last = [0_u64; 64];
        b.iter(|| {
            now += 1;
            for index in 0..4_096_usize {
                let chat = &mut last[index % 64];
                *chat = ids.next(black_box(now), *chat).expect("the clock moves with the ids").get();
            }
        });
    });
    group.finish();
}

criterion_group!(benches, one_millisecond);
criterion_main!(benches);
