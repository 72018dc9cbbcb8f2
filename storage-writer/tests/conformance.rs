//! The conformance suite of `storage-core`, run against the embedded engine.

mod common;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use storage_core::conformance::{Harness, run};
use storage_core::store::{OpId, Store, StoreRequest, StoreResult};
use storage_writer::metrics::StoreMetrics;
use storage_writer::store::embedded::{EmbeddedStore, EmbeddedView};
use tempfile::TempDir;

struct Embedded {
    store: EmbeddedStore,
    woken: Receiver<()>,
    fail_next: bool,
    dir: TempDir,
}

impl Embedded {
    fn open(dir: TempDir) -> Self {
        let (wake, woken) = channel();
        let waker = Arc::new(move || wake.send(()).unwrap_or(()));
        let metrics = Arc::new(StoreMetrics::default());
        let store = EmbeddedStore::open(dir.path(), &common::options(), metrics, waker).unwrap();
        Self { store, woken, fail_next: false, dir }
    }
}

impl Harness for Embedded {
    type View = EmbeddedView;

    fn submit(&mut self, op: OpId, request: StoreRequest) {
        let full = self.fail_next && matches!(request, StoreRequest::Commit(_));
        if full {
            self.fail_next = false;
            self.store.set_disk_reserve(u64::MAX);
        }
        self.store.submit(op, request);
        if full {
            self.store.set_disk_reserve(0);
        }
    }

    fn poll(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        loop {
            self.store.completions(done);
            if !done.is_empty() {
                return;
            }
            self.woken.recv_timeout(Duration::from_secs(60)).expect("the store answers");
        }
    }

    fn view(&self) -> EmbeddedView {
        (*self.store.views().newest()).clone()
    }

    fn reopen(self) -> Self {
        let Self { store, dir, .. } = self;
        drop(store);
        Self::open(dir)
    }

    fn fail_next(&mut self) -> bool {
        self.fail_next = true;
        true
    }
}

#[test]
fn the_embedded_engine_conforms() {
    run(|| Embedded::open(tempfile::tempdir().unwrap()));
}
