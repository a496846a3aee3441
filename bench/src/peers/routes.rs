//! A thousand rules in HTTPRoutes of the service `origin`, and a hundred
//! policies on some of them: exact paths, prefixes, headers and one that
//! everything else falls to, which is where the load goes.

use std::fmt::Write as _;
use std::path::Path;

/// HTTPRoutes, and the rules of each: as many as Gateway API allows one to have.
const ROUTES: usize = 63;
const RULES: usize = 16;
/// Policies, each on the first rule of a route or the second.
const POLICIES: usize = 100;

const FILE: &str = "routes.yaml";

/// Writes them so that every rule of one version differs from those of another.
pub(super) fn write(folder: &Path, version: usize) -> anyhow::Result<()> {
    let mut text = String::new();
    for route in 0..ROUTES {
        write!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{route}}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: origin}}]\n  rules:\n"
        )?;
        for rule in 0..RULES {
            let at = route * RULES + rule;
            let matched = match (at + 1 == ROUTES * RULES, at % 3) {
                (true, _) => "{path: {type: PathPrefix, value: /}}".to_owned(),
                (_, 0) => format!("{{path: {{type: Exact, value: /exact/{version}/{at}}}}}"),
                (_, 1) => format!("{{path: {{type: PathPrefix, value: /api/{version}/v{at}}}}}"),
                _ => format!("{{headers: [{{name: x-tenant, value: tenant-{version}-{at}}}]}}"),
            };
            writeln!(
                text,
                "  - {{name: rule-{rule}, matches: [{matched}], timeouts: {{backendRequest: {}s}}, \
                 backendRefs: [{{name: origin, port: 80}}]}}",
                10 + version % 50
            )?;
        }
    }
    for policy in 0..POLICIES {
        let (route, rule) = (policy / 2, policy % 2);
        writeln!(
            text,
            "---\napiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p{policy}}}\nspec:\n  \
             targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r{route}, \
             sectionName: rule-{rule}}}]\n  timeouts: {{request: {}s}}",
            10 + version % 50
        )?;
    }
    // A reader never sees half of it.
    let written = folder.with_extension("new");
    std::fs::write(&written, text)?;
    Ok(std::fs::rename(written, folder.join(FILE))?)
}

/// There are to be none.
pub(super) fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(folder.join(FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
