//! What the names of images stand for.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::assets::Assets;
use crate::binary;

/// Images that every cluster has.
pub(super) fn of_every_cluster(assets: &Assets) -> BTreeMap<String, Value> {
    let echo = assets.program("echo").canonicalize().expect("it was found");
    BTreeMap::from([
        (
            "gateway-api/echo-advanced".to_owned(),
            json!({
                "files": {"/usr/local/bin/server": echo, "/usr/local/bin/client": echo},
                "entrypoint": ["/usr/local/bin/server"],
                "root": "scratch",
            }),
        ),
        ("machine".to_owned(), json!({})),
    ])
}

/// Heddle's own images, as the `Dockerfile` makes them of the programs of this build. Those are not static
/// here, so that their libraries are in the images as well; nothing else is.
///
/// # Panics
/// If the programs do not build.
pub fn of_heddle() -> BTreeMap<String, Value> {
    let image = |programs: &[&str], user: u32| {
        let mut files = BTreeMap::new();
        for program in programs {
            let path = binary(program);
            for library in libraries(&path) {
                files.insert(library.clone(), library);
            }
            files.insert(format!("/{program}"), path.to_string_lossy().into_owned());
        }
        let entrypoint = programs.first().map(|program| format!("/{program}"));
        json!({"files": files, "entrypoint": [entrypoint], "user": user, "group": user, "root": "scratch"})
    };
    BTreeMap::from([
        ("heddle/sidecar".to_owned(), image(&["heddle-sidecar"], 7100)),
        ("heddle/control-plane".to_owned(), image(&["heddle-control-plane"], 65532)),
    ])
}

/// The libraries that a program needs, none if it is static.
fn libraries(program: &Path) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().expect("every machine has ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}
