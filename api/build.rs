//! Compiles the protocol files without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "envoy/service/discovery/v3/discovery.proto",
        "heddle/v1/control.proto",
        "heddle/v1/discovery.proto",
        "heddle/v1/replicas.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .include_file("protocol.rs")
        // It may hold a secret; `discovery` writes it without.
        .skip_debug(["heddle.v1.JwtKey"])
        .compile_fds(descriptors)?;
    Ok(())
}
