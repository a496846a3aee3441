use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ANSWER: Answer<'_> = Answer {
    reason: Reason::NoHealthyEndpoint,
    codes: Reason::NoHealthyEndpoint.codes(),
    message: "all 3 endpoints are ejected",
    service: "users.shop",
    policy: "shop/users-breaker",
    fields: &[],
    trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
    retry_after: None,
};

fn http1(answer: &Answer<'_>, form: Form, how: Http1) -> String {
    let mut out = Vec::new();
    answer.write_http1(form, how, &mut out);
    String::from_utf8(out).expect("text")
}

#[test]
fn a_client_that_accepts_json_gets_the_documented_object() {
    let text = http1(&ANSWER, Form::Json, Http1::default());
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert_eq!(
        head,
        format!(
            "HTTP/1.1 503 Service Unavailable\r\nheddle-error: no_healthy_endpoint\r\n\
             content-type: application/json\r\ncontent-length: {}",
            body.len()
        )
    );
    assert_eq!(
        serde_json::from_str::<Value>(body).expect("JSON"),
        json!({"error": {
            "code": 503,
            "reason": "no_healthy_endpoint",
            "message": "all 3 endpoints are ejected",
            "service": "users.shop",
            "policy": "shop/users-breaker",
            "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
        }})
    );
}

#[test]
fn any_other_client_gets_a_line() {
    let text = http1(&ANSWER, Form::Plain, Http1 { head: false, close: true });
    assert!(text.contains("\r\nconnection: close\r\n"));
    assert!(text.ends_with(
        "\r\n\r\nheddle: no_healthy_endpoint: all 3 endpoints are ejected (service users.shop, \
         policy shop/users-breaker, trace 4bf92f3577b34da6a3ce929d0e0e4736)\n"
    ));
    let text = http1(&Answer::new(Reason::Draining), Form::Plain, Http1::default());
    assert!(text.ends_with("\r\n\r\nheddle: draining: the workload is shutting down\n"));
}

#[test]
fn who_is_shed_learns_when_to_try_again() {
    let answer = Answer { retry_after: Some(7), ..ANSWER };
    for form in [Form::Plain, Form::Json] {
        assert!(http1(&answer, form, Http1::default()).contains("\r\nretry-after: 7\r\n"));
        assert_eq!(answer.http2(form).0.headers()["retry-after"], "7");
    }
    assert!(http1(&answer, Form::Grpc, Http1::default()).contains("\r\ngrpc-retry-pushback-ms: 7000\r\n"));
    assert_eq!(answer.http2(Form::Grpc).0.headers()["grpc-retry-pushback-ms"], "7000");
    assert!(Answer::new(Reason::Overloaded).http2(Form::Plain).0.headers().contains_key("retry-after"));
}

#[test]
fn grpc_gets_its_status_in_the_headers() {
    let answer = Answer { message: "100 % häufig\nzwei", ..Answer::new(Reason::Overloaded) };
    let expected = "heddle: overloaded: 100 %25 h%C3%A4ufig zwei";
    let text = http1(&answer, Form::Grpc, Http1::default());
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\ncontent-length: 0\r\n\r\n"),
        "{text}"
    );
    let (response, body) = answer.http2(Form::Grpc);
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "8");
    assert_eq!(response.headers()["grpc-message"], expected);
    assert_eq!(response.headers()["heddle-error"], "overloaded");
    assert!(body.is_empty());
}

#[test]
fn head_gets_the_length_without_the_body() {
    let text = http1(&ANSWER, Form::Json, Http1 { head: true, close: false });
    assert!(text.ends_with("\r\n\r\n"));
    assert!(!text.contains("content-length: 0"));
}

#[test]
fn the_form_follows_the_request() {
    for (content_type, accept, expected) in [
        (None, None, Form::Plain),
        (None, Some("application/json"), Form::Json),
        (None, Some("text/html, APPLICATION/JSON;q=0.5"), Form::Json),
        (None, Some("application/json;q=0"), Form::Plain),
        (None, Some("application/json; q=0.0, */*"), Form::Plain),
        (None, Some("application/*"), Form::Json),
        (None, Some("application/problem+json"), Form::Json),
        (None, Some("*/*"), Form::Json),
        (None, Some("text/html,application/xhtml+xml,*/*;q=0.8"), Form::Plain),
        (None, Some("image/png"), Form::Plain),
        (Some("application/json"), None, Form::Plain),
        (Some("application/grpc"), Some("application/json"), Form::Grpc),
        (Some("Application/gRPC+proto"), None, Form::Grpc),
        (Some("application/grpc;charset=x"), None, Form::Grpc),
        (Some("application/grpc-web"), None, Form::Plain),
    ] {
        let form = Form::of(content_type.map(str::as_bytes), accept.map(str::as_bytes));
        assert_eq!(form, expected, "{content_type:?} {accept:?}");
    }
}

#[test]
fn every_reason_has_an_answer_in_every_form() {
    for reason in Reason::ALL {
        let answer = Answer::new(reason);
        for form in [Form::Plain, Form::Json, Form::Grpc] {
            let text = http1(&answer, form, Http1::default());
            let (response, body) = answer.http2(form);
            assert!(text.ends_with(std::str::from_utf8(&body).expect("text")));
            assert!(text.starts_with(&format!("HTTP/1.1 {} ", response.status().as_u16())), "{text}");
            assert!(!text.starts_with(&format!("HTTP/1.1 {} \r", response.status().as_u16())), "{reason}");
        }
    }
}

#[test]
fn a_status_without_a_body_has_none_and_no_length() {
    for http in [204, 304] {
        let answer = Answer { codes: Codes { http, grpc: 2 }, ..Answer::new(Reason::FaultInjected) };
        let text = http1(&answer, Form::Json, Http1::default());
        assert!(text.ends_with("\r\n\r\n") && !text.contains("content-length"), "{text}");
        let (response, body) = answer.http2(Form::Json);
        assert!(body.is_empty() && !response.headers().contains_key(CONTENT_LENGTH));
    }
}

proptest! {
    /// Whatever a message quotes, the answer is one well-formed message.
    #[test]
    fn nothing_quoted_breaks_out(message in any::<String>(), service in any::<String>()) {
        let answer = Answer { message: &message, service: &service, ..Answer::new(Reason::BadRequest) };
        for form in [Form::Plain, Form::Json, Form::Grpc] {
            let text = http1(&answer, form, Http1::default());
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut parsed = httparse::Response::new(&mut headers);
            let length = parsed.parse(text.as_bytes()).expect("valid").unwrap();
            let header = |name| parsed.headers.iter().find(|h| h.name == name).map(|h| h.value);
            let body_length = (text.len() - length).to_string();
            prop_assert_eq!(header("content-length"), Some(body_length.as_bytes()));
            prop_assert_eq!(header("heddle-error"), Some(&b"bad_request"[..]));
            answer.http2(form);
            let body = &text[length..];
            match form {
                Form::Plain => prop_assert_eq!(body.find('\n'), Some(body.len() - 1)),
                Form::Json => {
                    let value: Value = serde_json::from_str(body).expect("JSON");
                    if !message.is_empty() {
                        prop_assert_eq!(&value["error"]["message"], &message);
                    }
                }
                Form::Grpc => prop_assert!(body.is_empty()),
            }
        }
    }
}

/// `docs/errors.md`, from the same table as the answers.
fn rendered() -> String {
    let mut page = String::from(
        "# Errors made by the mesh\n\n\
         <!-- Rendered from sidecar/src/sanitize/answer/reasons.rs by the test `the_documentation_lists_every_reason`;\n\
         HEDDLE_WRITE_DOCS=1 writes it anew. -->\n\n\
         A response that a sidecar made itself has the header `heddle-error` with one of these reasons; one from the\n\
         application never has. The same words are the label `error` of `heddle_requests_total` and stand in the access log.\n\n\
         A client that accepts JSON gets `{\"error\":{\"code\",\"reason\",\"message\",\"service\",\"policy\",\"traceId\"}}`, where\n\
         what is not known is left out; a gRPC client gets status 200 with `grpc-status` and `grpc-message`; any other\n\
         client one line of text.\n\n\
         | reason | HTTP | gRPC | what happened | what to do |\n| --- | --- | --- | --- | --- |\n",
    );
    for reason in Reason::ALL {
        let (status, grpc, meaning) = (reason.status(), reason.grpc_status(), meaning(reason));
        page += &format!("| `{reason}` | {status} | {grpc} | {} | {} |\n", meaning.cause, meaning.remedy);
    }
    page
}

#[test]
fn the_documentation_lists_every_reason() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
    if std::env::var_os("HEDDLE_WRITE_DOCS").is_some() {
        std::fs::write(path, rendered()).expect("docs/ can be written to");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == rendered(),
        "docs/errors.md is out of date: HEDDLE_WRITE_DOCS=1 cargo test -p heddle-sidecar documentation"
    );
}
