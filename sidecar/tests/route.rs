//! What selecting a route costs: the memory that a worker's thread takes from
//! the allocator while requests are compared with a thousand rules.

use std::sync::Arc;

use heddle_sidecar::route::{
    GrpcMatch, GrpcTable, Head, Http1Head, HttpMatch, HttpTable, NameMatch, PathMatch, Rule, Test,
};
use http::{HeaderName, Request};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Bytes that the calling thread allocated while `run` did its work.
fn allocated(run: impl FnOnce()) -> u64 {
    let counter = tikv_jemalloc_ctl::thread::allocatedp::read().expect("built with statistics");
    let before = counter.get();
    run();
    counter.get() - before
}

fn rule(at: usize) -> Arc<Rule> {
    Arc::new(Rule { label: at.to_string().into(), ..Rule::default() })
}

fn bytes(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

/// Exact paths, prefixes, and tenants told apart by a header on one path.
fn http_table() -> HttpTable {
    HttpTable::new((0..1000).map(|at| {
        let tenant = (HeaderName::from_static("x-tenant"), Test::Exact(bytes(&format!("tenant-{at}"))));
        let wanted = match at % 3 {
            0 => HttpMatch { path: PathMatch::Exact(bytes(&format!("/exact/{at}"))), ..HttpMatch::default() },
            1 => HttpMatch { path: PathMatch::Prefix(bytes(&format!("/api/v{at}"))), ..HttpMatch::default() },
            _ => HttpMatch { headers: vec![tenant], ..HttpMatch::default() },
        };
        (vec![wanted], rule(at))
    }))
}

fn selected<H: Head>(table: &HttpTable, head: &H) -> Option<String> {
    table.select(head).map(|rule| rule.label.to_string())
}

#[test]
fn selecting_among_a_thousand_rules_allocates_nothing() {
    let table = http_table();
    for (target, tenant, expected) in [
        ("/exact/300", "none", Some("300")),
        ("/api/v301/users/7?full=1", "none", Some("301")),
        ("/other", "tenant-302", Some("302")),
        ("/other", "none", None),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nhost: users\r\naccept: */*\r\nx-tenant: {tenant}\r\n");
        let one = Http1Head::new(text.as_bytes());
        let request = Request::get(format!("http://users{target}")).header("x-tenant", tenant);
        let (two, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(selected(&table, &one).as_deref(), expected);
        assert_eq!(selected(&table, &two).as_deref(), expected);
        let cost = allocated(|| {
            assert_eq!(table.select(&one).is_some(), expected.is_some());
            assert_eq!(table.select(&two).is_some(), expected.is_some());
        });
        assert_eq!(cost, 0, "bytes for {target}");
    }
    assert!(allocated(|| drop(text_of_any_size())) > 0, "the counter counts");
}

fn text_of_any_size() -> String {
    std::hint::black_box("x").repeat(100)
}

#[test]
fn selecting_among_a_thousand_grpc_rules_allocates_nothing() {
    let exact = |text: String| Some(NameMatch::Exact(bytes(&text)));
    let table = GrpcTable::new((0..1000).map(|at| {
        let service = exact(format!("shop.Service{}", at / 10));
        let wanted = GrpcMatch { service, method: exact(format!("Method{at}")), headers: vec![] };
        (vec![wanted], rule(at))
    }));
    for (path, expected) in
        [("/shop.Service7/Method77", true), ("/shop.Service7/Method78x", false), ("/x", false)]
    {
        let (head, ()) = Request::post(format!("http://users{path}")).body(()).unwrap().into_parts();
        let cost = allocated(|| assert_eq!(table.select(&head).is_some(), expected, "{path}"));
        assert_eq!(cost, 0, "bytes for {path}");
    }
}
