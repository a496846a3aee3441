//! What the names of images stand for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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

/// Names a folder whose programs images have: static ones, as `tests/static` leaves them.
const PROGRAMS: &str = "HEDDLE_TEST_IMAGES";

/// The authorities that whoever is outside the mesh is verified by.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Heddle's own images, as the `Dockerfile` makes them: of static programs where there are any, or else of those
/// of this build, with the libraries that they need; nothing else is in them.
///
/// # Panics
/// If the programs do not build.
pub fn of_heddle() -> BTreeMap<String, Value> {
    let folder = std::env::var_os(PROGRAMS).map(PathBuf::from);
    let image = |programs: &[&str], user: u32| {
        let mut files = BTreeMap::new();
        if Path::new(AUTHORITIES).exists() {
            files.insert(AUTHORITIES.to_owned(), AUTHORITIES.to_owned());
        }
        for program in programs {
            let path = folder.as_ref().map_or_else(|| binary(program), |folder| folder.join(program));
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
