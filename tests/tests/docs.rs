//! What the documentation shows of Heddle's own objects, given to a real control plane: it reads
//! and compiles all of it.

use std::fs;
use std::path::Path;

use heddle_tests::{ControlPlane, eventually};
use serde_json::Value;

/// The blocks of YAML in a page that are whole objects, each with the line that it begins in.
fn objects(page: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (at, line) in page.lines().enumerate() {
        match &mut block {
            None if line.trim() == "```yaml" => block = Some((at + 2, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => found.extend(block.take()),
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    found
        .retain(|(_, text)| text.contains("apiVersion: heddle.dev/") || text.contains("apiVersion: gateway"));
    found
}

/// An object that says when the control plane has read what stands beside it.
fn sentinel(name: &str) -> String {
    format!(
        "---\napiVersion: heddle.dev/v1alpha1\nkind: FaultPolicy\nmetadata: {{name: {name}, namespace: seen}}\n\
         spec: {{targetRefs: [{{group: '', kind: Service, name: any}}], delay: {{fixed: 1s, percent: 1}}}}\n"
    )
}

#[test]
fn every_object_in_the_documentation_is_one_that_a_control_plane_takes() {
    let control_plane = ControlPlane::start();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md")];
    let docs = fs::read_dir(root.join("docs")).expect("there are pages");
    pages.extend(docs.map(|entry| entry.expect("it can be read").path()));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    let mut seen = 0;
    for page in pages {
        let text = fs::read_to_string(&page).expect("it is text");
        let name = page.file_name().and_then(|name| name.to_str()).expect("it has a name").to_owned();
        for (line, object) in objects(&text) {
            let mark = format!("seen-{seen}");
            seen += 1;
            control_plane.apply("docs.yaml", &format!("{object}{}", sentinel(&mark)));
            let (errors, statuses) = eventually(&format!("{name}:{line} is read"), || {
                let (errors, statuses) = (control_plane.shows("/errors"), control_plane.shows("/statuses"));
                let is_read = statuses.to_string().contains(&format!("{mark}\""))
                    || errors.to_string().contains("docs.yaml");
                is_read.then_some((errors, statuses))
            });
            assert_eq!(errors["errors"], Value::Array(Vec::new()), "{name}:{line}\n{object}");
            for policy in statuses["policies"].as_array().into_iter().flatten() {
                let refusals = policy["refusals"].as_array().cloned().unwrap_or_default();
                assert!(refusals.is_empty(), "{name}:{line}: {refusals:?}\n{object}");
            }
        }
    }
    assert!(seen >= 10, "there are more objects than {seen} in the documentation");
}
