//! Injection into manifests as people have them: each file of `injection/` is
//! one shape, with what has to come of it beside it: `NAME.injected.yaml`, and
//! in `NAME.lines` what is said of each object.
//!
//! `HEDDLE_UPDATE_INJECTED=1` writes both anew; they are to be read then.

// A test that panics has failed as it should.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use heddle_control_plane::injection::manifest::{Action, Stream, act, join};
use heddle_control_plane::injection::{Injector, Options};
use serde_json::Value;

fn injector() -> Injector {
    // A version of its own, or every release would change the expectations.
    Injector { version: "1.2.3".into(), ..Injector::default() }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/injection")
}

/// Every shape: its name and text.
fn shapes() -> Vec<(String, String)> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut shapes: Vec<_> = files
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_suffix(".yaml")?;
            (!name.ends_with(".injected")).then(|| (name.to_owned(), fs::read_to_string(&path).unwrap()))
        })
        .collect();
    shapes.sort();
    assert!(shapes.len() >= 37, "{}", shapes.len());
    shapes
}

fn inject(text: &str) -> Result<Stream, String> {
    act(text, Action::Inject(&injector())).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(|fault| format!("{fault}\n")).collect();
        faults.concat()
    })
}

/// Everything a stream holds, as kubectl would see it.
fn values(text: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options(text, options).unwrap()
}

#[test]
fn every_shape_becomes_what_is_expected_of_it() {
    let update = std::env::var_os("HEDDLE_UPDATE_INJECTED").is_some();
    let mut wrong = Vec::new();
    for (name, text) in shapes() {
        let (written, lines) = match inject(&text) {
            Ok(stream) => (
                Some(stream.text),
                stream.lines.iter().map(|line| format!("{line}\n")).collect::<Vec<_>>().concat(),
            ),
            Err(faults) => (None, faults),
        };
        // Where nothing changes there is nothing to expect but that.
        let written = written.filter(|written| *written != text);
        for (end, found) in [("injected.yaml", written), ("lines", Some(lines))] {
            let path = folder().join(format!("{name}.{end}"));
            if update {
                match &found {
                    Some(found) => fs::write(&path, found).unwrap(),
                    None => drop(fs::remove_file(&path)),
                }
            } else if fs::read_to_string(&path).ok() != found {
                wrong.push(format!("{}:\n{}", path.display(), found.unwrap_or_default()));
            }
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
}

#[test]
fn a_second_injection_changes_no_byte() {
    for (name, text) in shapes() {
        let Ok(once) = inject(&text) else { continue };
        let twice = inject(&once.text).unwrap();
        assert_eq!(twice.text, once.text, "{name}");
    }
}

#[test]
fn what_is_injected_can_be_taken_back_in_all_its_fields() {
    for (name, text) in shapes() {
        for native in ["enabled", "disabled"] {
            let mut injector = injector();
            injector.defaults.set("native-sidecar", native).unwrap();
            let Ok(injected) = act(&text, Action::Inject(&injector)) else { continue };
            let restored = act(&injected.text, Action::Remove).unwrap();
            // An object that came injected is itself restored further than it was.
            if !text.contains("heddle.dev/injected") {
                assert_eq!(values(&restored.text), values(&text), "{name}");
            }
            let again = act(&restored.text, Action::Remove).unwrap();
            assert_eq!(again.text, restored.text, "{name}");
        }
    }
}

#[test]
fn comments_stay_and_what_was_added_goes_to_the_byte() {
    let text = fs::read_to_string(folder().join("comments.yaml")).unwrap();
    let injected = inject(&text).unwrap();
    let lost: Vec<_> =
        text.lines().filter(|line| line.contains('#') && !injected.text.contains(*line)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(act(&injected.text, Action::Remove).unwrap().text, text);
}

#[test]
fn each_choice_of_the_mesh_and_of_the_pod_comes_out() {
    let mut defaults = Options::default();
    for (name, value) in [
        ("sidecar-image", "registry.example/mesh/sidecar:7"),
        ("log-level", "debug"),
        ("interception", "cni"),
    ] {
        defaults.set(name, value).unwrap();
    }
    let injector = Injector { defaults, control_plane: "10.0.0.9:7200".into(), ..injector() };
    let text = fs::read_to_string(folder().join("plain.yaml")).unwrap();
    let stream = act(&text, Action::Inject(&injector)).unwrap();
    for part in ["image: registry.example/mesh/sidecar:7", "value: debug", "value: 10.0.0.9:7200"] {
        assert!(stream.text.contains(part), "{part}: {}", stream.text);
    }
    assert!(!stream.text.contains("heddle-init"), "{}", stream.text);
}

#[test]
fn streams_of_several_files_stay_documents_of_their_own() {
    let mut joined = String::new();
    for text in ["a: 1", "# of b\nb: 2\n", "---\nc: 3\n"] {
        join(&mut joined, text);
    }
    assert_eq!(joined, "a: 1\n---\n# of b\nb: 2\n---\nc: 3\n");
}

#[test]
fn what_cannot_be_read_is_named_with_its_line() {
    for (text, line, part) in [
        ("a: 1\n---\nb: [1, 2\n", 3, ""),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", 1, "spec: has to be an object"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {}\n",
            1,
            "spec.template: is needed",
        ),
        ("---\na: 1\n---\nkind: Pod\napiVersion: v1\nspec: {containers: []}\n", 3, "spec.containers"),
        ("apiVersion: v1\nkind: Pod\nspec: {containers: [{name: A}]}\n", 1, "spec.containers[0].name"),
        (
            "kind: Pod\napiVersion: v1\nmetadata: {labels: {a: 1}}\nspec: {containers: [{name: a}]}\n",
            1,
            "labels[a]",
        ),
    ] {
        let faults = act(text, Action::Inject(&injector())).unwrap_err();
        let shown = faults[0].to_string();
        assert!(faults[0].line >= line && shown.contains(part), "{text}: {shown}");
    }
}
