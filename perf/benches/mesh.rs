//! What it costs to hand a message from one shard to another: the queues alone, and a round trip between two threads
//! that sleep when they have nothing to do, as shards do.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gateway_core::brain::{MeshClass, MeshMessage};
use mesh::{Capacities, Mesh};
use std::hint::black_box;
use std::sync::Arc;
use std::thread;

// The mesh is private to the gateway's shell and names nothing else of it: the bench compiles the same file.
#[path = "../../gateway/src/mesh.rs"]
#[allow(dead_code, unreachable_pub)]
mod mesh;

/// About as large as what shards send each other: ids, and a shared frame by reference.
struct Message {
    class: MeshClass,
    _body: [u64; 12],
}

impl MeshMessage for Message {
    fn class(&self) -> MeshClass {
        self.class
    }
}

fn message(class: MeshClass) -> Message {
    Message { class, _body: [7; 12] }
}

/// Takes what is there for `shard` of two, at least one message; sleeps until it comes.
fn next(mesh: &Mesh<Message, ()>, shard: u16, mut each: impl FnMut(Message)) {
    let mut taken = 0;
    while taken == 0 {
        mesh.drain(1 - shard, shard, |message| {
            taken += 1;
            each(message);
        });
        if taken == 0 {
            let waker = mesh.waker(shard);
            waker.arm();
            if mesh.is_empty(shard) {
                let mut counter = [0; 8];
                rustix::io::read(waker.eventfd(), &mut counter).expect("an eventfd can be read");
            }
            waker.disarm();
        }
    }
}

fn send(mesh: &Mesh<Message, ()>, from: u16, class: MeshClass, count: usize) {
    for _ in 0..count {
        assert!(mesh.push(from, 1 - from, message(class)).is_ok(), "the queue has room");
    }
    mesh.waker(1 - from).wake();
}

/// Answers every request; a fan-out message ends it.
fn answer(mesh: &Mesh<Message, ()>) {
    let mut on = true;
    while on {
        let mut answers = 0;
        next(mesh, 1, |message| match message.class {
            MeshClass::Fanout => on = false,
            _ => answers += 1,
        });
        send(mesh, 1, MeshClass::Answer, answers);
    }
}

fn mesh_hop(c: &mut Criterion) {
    let mut group = c.benchmark_group("mesh");
    group.throughput(Throughput::Elements(64));
    group.bench_function("push_and_drain_64_on_one_thread", |b| {
        let mesh: Mesh<Message, ()> = Mesh::new(2, Capacities::default()).expect("eventfds");
        b.iter(|| {
            for _ in 0..64 {
                black_box(mesh.push(0, 1, message(MeshClass::Fanout)).is_ok());
            }
            mesh.drain(0, 1, |message| {
                black_box(message);
            });
        });
    });
    let mesh: Arc<Mesh<Message, ()>> = Arc::new(Mesh::new(2, Capacities::default()).expect("eventfds"));
    let other = mesh.clone();
    let shard = thread::spawn(move || answer(&other));
    for batch in [1, 64] {
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("round_trip_of_{batch}_between_sleeping_threads"), |b| {
            b.iter(|| {
                send(&mesh, 0, MeshClass::Request, batch);
                let mut left = batch;
                while left > 0 {
                    next(&mesh, 0, |_| left -= 1);
                }
            });
        });
    }
    group.finish();
    send(&mesh, 0, MeshClass::Fanout, 1);
    shard.join().expect("the other shard ends");
}

criterion_group!(benches, mesh_hop);
criterion_main!(benches);
