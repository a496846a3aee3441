//! How often the allocator is asked on behalf of one request: a budget of the
//! data path, counted in two sidecars in a row, mutual TLS between them.

#![allow(unsafe_code)]

#[allow(dead_code, reason = "the tests of HTTP/1 use all of it")]
#[path = "http1/harness.rs"]
mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use harness::{Sidecar, Upstream};
use heddle_sidecar::config::TrafficPolicy;

/// Of a keep-alive request, in one sidecar.
const BUDGET: f64 = 8.0;

/// What threads of the sidecars have asked for so far.
static ASKED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is a client or an application.
    static IS_PLAIN: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

// SAFETY: everything is the system allocator's, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    if !IS_PLAIN.get() {
        ASKED.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_keep_alive_request_stays_within_its_allocations() {
    IS_PLAIN.set(true);
    let app = Upstream::new().serve(|mut peer| {
        IS_PLAIN.set(true);
        loop {
            peer.head();
            peer.send("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello");
        }
    });
    let (client, _server) = Sidecar::pair(app, TrafficPolicy::default());
    let mut connection = client.connect();
    let mut ask = |times: u32| {
        for _ in 0..times {
            let (head, body) =
                connection.ask("GET /users/7?full=1 HTTP/1.1\r\nhost: web\r\naccept: */*\r\n\r\n");
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert_eq!(body, "hello");
        }
    };
    // Connections, buffers and what is remembered of the destination.
    ask(200);
    let (requests, before) = (1000, ASKED.load(Ordering::Relaxed));
    ask(requests);
    let asked = ASKED.load(Ordering::Relaxed) - before;
    let each = asked as f64 / f64::from(requests) / 2.0;
    println!("{each:.1} allocations per request and sidecar");
    assert!((0.0..=BUDGET).contains(&each) && asked > 0, "{each:.1} per request and sidecar");
}
