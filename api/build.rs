//! Compiles the protocol files without a system `protoc`, and writes down
//! which fields this version knows.

use std::fmt::Write;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "envoy/service/discovery/v3/discovery.proto",
        "heddle/v1/control.proto",
        "heddle/v1/discovery.proto",
        "heddle/v1/replicas.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;

    // Messages within messages are maps' entries, which resources do not have.
    let messages: Vec<_> = descriptors
        .file
        .iter()
        .flat_map(|file| file.message_type.iter().map(move |message| (file.package(), message)))
        .map(|(package, message)| {
            let fields = message.field.iter();
            let repeated = |label| label == 3; // LABEL_REPEATED
            let fields = fields.map(|f| (f.number(), f.name(), f.type_name(), repeated(f.label() as i32)));
            (format!(".{package}.{}", message.name()), fields.collect::<Vec<_>>())
        })
        .collect();
    let mut table = String::from("&[\n");
    for (name, fields) in &messages {
        writeln!(table, "    Message {{ name: {:?}, fields: &[", name.trim_start_matches('.'))?;
        let mut fields = fields.clone();
        fields.sort_unstable();
        for (number, name, kind, repeated) in fields {
            let message = messages.iter().position(|(name, _)| name == kind);
            let brackets = if repeated { "[]" } else { "" };
            writeln!(
                table,
                "        Field {{ number: {number}, name: \"{name}{brackets}\", message: {message:?} }},"
            )?;
        }
        table.push_str("    ] },\n");
    }
    table.push_str("]\n");
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("fields.rs"), table)?;

    tonic_prost_build::configure()
        .include_file("protocol.rs")
        // It may hold a secret; `discovery` writes it without.
        .skip_debug(["heddle.v1.JwtKey"])
        .compile_fds(descriptors)?;
    Ok(())
}
