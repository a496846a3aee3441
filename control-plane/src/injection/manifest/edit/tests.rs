use serde_json::json;

use super::*;

fn read(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// The text after the change that `change` makes of its value, which it has to hold.
fn changed(text: &str, change: impl FnOnce(&mut Value)) -> String {
    let before = read(text);
    let mut after = before.clone();
    change(&mut after);
    let text = edit(text, &before, &after).unwrap();
    assert_eq!(read(&text), after, "{text}");
    text
}

const POD: &str = "\
# A pod.
metadata:
  labels: {app: web}   # flow
spec:
  # About all containers.
  containers:
  # The first one.
  - name: web  # its name
    image: \"web:1\"

    livenessProbe:
      # How it lives.
      httpGet: {path: /healthz, port: 80}
      periodSeconds: 3 # often
  # The second one.
  - name: log
    args:
      - |
        # no comment
        text
# The end.
";

#[test]
fn nothing_but_what_changes_is_touched() {
    let text = changed(POD, |pod| {
        pod["spec"]["containers"][0]["livenessProbe"]["httpGet"] = json!({"path": "/probe", "port": 7190});
    });
    let expected = POD.replace(
        "      httpGet: {path: /healthz, port: 80}\n",
        "      httpGet:\n        path: /probe\n        port: 7190\n",
    );
    assert_eq!(text, expected);
}

#[test]
fn new_keys_and_elements_find_their_place() {
    let text = changed(POD, |pod| {
        let containers = pod["spec"]["containers"].as_array_mut().unwrap();
        containers.insert(0, json!({"name": "first"}));
        containers.push(json!({"name": "last"}));
        pod["metadata"]["annotations"] = json!({"a": "b"});
        pod["spec"]["volumes"] = json!([{"name": "data"}]);
    });
    let expected = POD
        .replace("# flow\n", "# flow\n  annotations:\n    a: b\n")
        .replace("  # The first one.\n", "  - name: first\n  # The first one.\n")
        .replace("        text\n", "        text\n  - name: last\n  volumes:\n  - name: data\n");
    assert_eq!(text, expected);
}

#[test]
fn what_was_added_is_taken_away_to_the_byte() {
    let injected = changed(POD, |pod| {
        pod["spec"]["containers"].as_array_mut().unwrap().insert(0, json!({"name": "first"}));
        pod["spec"]["volumes"] = json!([{"name": "data"}]);
    });
    let restored = changed(&injected, |pod| {
        pod["spec"]["containers"].as_array_mut().unwrap().remove(0);
        pod["spec"].as_object_mut().unwrap().shift_remove("volumes");
    });
    assert_eq!(restored, POD);
}

#[test]
fn one_handler_takes_the_place_of_another() {
    let text = "probe:\n  tcpSocket:\n    port: 80\n  periodSeconds: 3\n";
    let text = changed(text, |value| {
        value["probe"] = json!({"httpGet": {"port": 7190}, "periodSeconds": 3});
    });
    assert_eq!(text, "probe:\n  httpGet:\n    port: 7190\n  periodSeconds: 3\n");
}

#[test]
fn lists_of_objects_and_texts_without_a_last_newline_are_understood() {
    let text = "kind: List\nitems:\n  - kind: Pod\n    spec:\n      containers:\n        - name: web";
    let text = changed(text, |list| list["items"][0]["spec"]["volumes"] = json!([{"name": "data"}]));
    assert!(text.ends_with("        - name: web\n      volumes:\n      - name: data\n"), "{text}");
}

#[test]
fn what_is_not_understood_is_left_to_others() {
    for text in ["{a: 1}\n", "a:\t1\n", "a: 1\r\n", "? a\n: 1\n", "--- {a: 1}\n", "", "# nothing\n"] {
        assert_eq!(edit(text, &json!({"a": 1}), &json!({"a": 2})), None, "{text:?}");
    }
    // The value is not what the outline says.
    for (text, before) in
        [("a: 1\n", json!({"b": 1})), ("- 1\n- 2\n", json!([1])), ("a: |\n  b\nc\n", json!({"a": 1}))]
    {
        assert_eq!(edit(text, &before, &json!({})), None, "{text:?}");
    }
}
