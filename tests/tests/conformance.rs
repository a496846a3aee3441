//! The Gateway API's own conformance suite, unmodified: all that it has for meshes. `HEDDLE_WRITE_DOCS=1`
//! writes the report that `docs/` has.

use std::{env, fs};

use heddle_tests::cluster::{Cluster, Settings, of_heddle};

/// The report in the documentation.
const DOCUMENTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/gateway-api-conformance.yaml");

/// What Heddle supports beyond the core of the profiles.
const FEATURES: [&str; 16] = [
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    // Of these the suite has tests for meshes that belong to no profile.
    "HTTPRoute",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

#[test]
fn the_gateway_api_s_suite_passes_for_meshes() {
    let Some(cluster) = Cluster::start_with(&Settings { images: of_heddle(), ..Settings::default() }) else {
        return;
    };
    cluster.install_gateway_api();
    cluster.install_heddle(&[]);
    let report = cluster.directory().join("report.yaml");
    let features = format!("-supported-features={}", FEATURES.join(","));
    let output = cluster
        .command(cluster.program("conformance"))
        .args(["-test.run=^TestConformance$", "-test.v", "-test.timeout=15m", "-mesh-name=heddle"])
        .args(["-conformance-profiles=MESH-HTTP,MESH-GRPC", &features])
        .arg("-namespace-labels=heddle.dev/inject=enabled")
        .args(["-organization=heddle", "-project=heddle", "-url=https://heddle.dev"])
        .args(["-contact=https://heddle.dev", concat!("-version=v", env!("CARGO_PKG_VERSION"))])
        .arg(format!("-report-output={}", report.display()))
        .output()
        .expect("util-linux has nsenter");
    let said = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<&str> = said.lines().filter(|line| line.trim_start().starts_with("--- FAIL")).collect();
    assert!(output.status.success(), "{}\n{said}", failed.join("\n"));
    let skipped: Vec<&str> =
        said.lines().filter(|line| line.contains("--- SKIP: TestConformance/Mesh")).collect();
    assert!(skipped.is_empty(), "{}", skipped.join("\n"));
    let report = fs::read_to_string(cluster.outside(&report)).expect("it was written");
    let report = comparable(&report);
    if env::var_os("HEDDLE_WRITE_DOCS").is_some() {
        fs::write(DOCUMENTED, &report).expect("there is room");
    }
    let documented = fs::read_to_string(DOCUMENTED).expect("it is documented");
    assert_eq!(report, comparable(&documented), "HEDDLE_WRITE_DOCS=1 writes {DOCUMENTED}");
}

/// The report without the day on which it was made, which is another each time, and with its profiles in
/// the order of the alphabet: the suite writes them in any.
fn comparable(report: &str) -> String {
    let lines = report.lines().filter(|line| !line.starts_with("date:"));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let (head, profiles) = text.split_once("\nprofiles:\n").expect("a report has profiles");
    let mut profiles: Vec<&str> =
        profiles.strip_prefix("- ").expect("it is a list").trim_end().split("\n- ").collect();
    profiles.sort_unstable_by_key(|profile| profile.lines().find(|line| line.starts_with("  name: ")));
    format!("{head}\nprofiles:\n- {}\n", profiles.join("\n- "))
}
