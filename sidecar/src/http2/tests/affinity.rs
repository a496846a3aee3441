//! Requests that are tied to an endpoint.

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderName, Request, Response};

use super::harness::{Mesh, SERVICE, app, policy};
use crate::config::TrafficPolicy;
use crate::policy::balance::{Algorithm, Balancing};
use crate::policy::hash_key::{Cookie, HashOn};

/// Three applications that say which one answered, called as `on` says.
async fn mesh(on: HashOn) -> Mesh {
    let mut apps = Vec::new();
    for name in ["a", "b", "c"] {
        let app = app(move |_, _, mut respond| async move {
            let response =
                Response::builder().header("x-app", name).header(SET_COOKIE, "mine=1").body(()).unwrap();
            respond.send_response(response, true).unwrap();
        });
        apps.push(app.await);
    }
    let balancing = Balancing { algorithm: Algorithm::ConsistentHash(on), ..Balancing::default() };
    Mesh::plain(&apps, TrafficPolicy { balancing, ..policy() })
}

/// Who answers a request with this header, and the last cookie that was set.
async fn ask(mesh: &Mesh, header: &str, value: &str) -> (String, String) {
    let request = Request::get(SERVICE).header(header, value).body(()).unwrap();
    let (response, _) = mesh.connect().await.send_request(request, true).unwrap();
    let response = response.await.unwrap();
    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    let cookie = response.headers().get_all(SET_COOKIE).iter().next_back().map(text);
    (text(&response.headers()["x-app"]), cookie.unwrap())
}

#[tokio::test]
async fn equal_headers_go_to_the_same_endpoint() {
    let mesh = mesh(HashOn::Header(HeaderName::from_static("x-user"))).await;
    let mut homes = Vec::new();
    for user in 0..20 {
        let user = user.to_string();
        let (home, _) = ask(&mesh, "x-user", &user).await;
        assert_eq!(ask(&mesh, "x-user", &user).await, (home.clone(), "mine=1".to_owned()));
        homes.push(home);
    }
    assert!(homes.iter().any(|home| *home != homes[0]), "{homes:?}");
}

#[tokio::test]
async fn a_cookie_is_set_beside_the_applications_own_and_honoured() {
    let cookie = Cookie { name: "tie".into(), attributes: "; HttpOnly".into() };
    let mesh = mesh(HashOn::Cookie(cookie)).await;
    for _ in 0..10 {
        let (home, set) = ask(&mesh, "x-other", "").await;
        let cookie = set.strip_suffix("; HttpOnly").expect("it is ours");
        assert!(cookie.starts_with("tie="), "{set}");
        for _ in 0..3 {
            assert_eq!(ask(&mesh, COOKIE.as_str(), cookie).await, (home.clone(), "mine=1".to_owned()));
        }
    }
}
