//! The CustomResourceDefinitions of Heddle's kinds, made from the Rust types.
//!
//! Kubernetes wants a *structural* schema: no `$ref`, one type per value, no
//! `additionalProperties: false` (unknown fields are refused there by field
//! validation). What schemars writes is reduced to that here.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::rule::Rule;
use super::{
    Attachment, ExternalServiceSpec, FaultPolicySpec, GROUP, JwtPolicySpec, Kind, MeshConfigSpec,
    RateLimitPolicySpec, TelemetryPolicySpec, TrafficPolicySpec, VERSION,
};

/// The definition of each kind, with the name of the file that holds it.
pub fn manifests() -> Vec<(String, Value)> {
    vec![
        manifest::<ExternalServiceSpec>(),
        manifest::<FaultPolicySpec>(),
        manifest::<JwtPolicySpec>(),
        manifest::<MeshConfigSpec>(),
        manifest::<RateLimitPolicySpec>(),
        manifest::<TelemetryPolicySpec>(),
        manifest::<TrafficPolicySpec>(),
    ]
}

/// All definitions as one stream of YAML documents.
pub fn render() -> String {
    manifests().iter().map(|(_, definition)| yaml(definition)).collect::<Vec<_>>().join("---\n")
}

/// The fields of a TrafficPolicy at the depth at which policies are merged, such
/// as `timeouts.request`, in the order of its schema: what a person may ask for.
pub fn field_paths_of_traffic_policy() -> Vec<String> {
    let schema = structural_schema::<TrafficPolicySpec>();
    let within = |schema: &Value, outer: &str| -> Vec<(String, Value)> {
        let fields = schema["properties"].as_object().into_iter().flatten();
        let path = |name: &str| if outer.is_empty() { name.into() } else { format!("{outer}.{name}") };
        fields.map(|(name, inner)| (path(name), inner.clone())).collect()
    };
    // What has no fields, or whose parts mean something only together, is one itself.
    let split = |(path, schema): (String, Value), whole: bool| {
        let inner = within(&schema, &path);
        if whole || inner.is_empty() { vec![(path, schema)] } else { inner }
    };
    let sections = within(&schema, "").into_iter().filter(|(name, _)| name != "targetRefs");
    let fields = sections.flat_map(|section| split(section, false));
    let fields = fields.flat_map(|(path, schema)| {
        let whole = path != "retry.budget";
        split((path, schema), whole)
    });
    fields.map(|(path, _)| path).collect()
}

/// One definition as a YAML document.
fn yaml(definition: &Value) -> String {
    serde_saphyr::to_string(definition).expect("a JSON value is a YAML value")
}

fn manifest<K: Kind>() -> (String, Value) {
    let name = format!("{}.{GROUP}", K::PLURAL);
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": name, "labels": { "app.kubernetes.io/part-of": "heddle" } },
        "spec": {
            "group": GROUP,
            "scope": if K::NAMESPACED { "Namespaced" } else { "Cluster" },
            "names": {
                "kind": K::KIND,
                "listKind": format!("{}List", K::KIND),
                "plural": K::PLURAL,
                "singular": K::KIND.to_ascii_lowercase(),
                "shortNames": K::SHORT_NAMES,
                "categories": ["heddle"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns::<K>(),
                "schema": { "openAPIV3Schema": object_schema::<K>() },
            }],
        },
    });
    if let Some(attachment) = K::ATTACHMENT {
        // GEP-713: tools find the kinds of policies by it.
        definition["metadata"]["labels"]["gateway.networking.k8s.io/policy"] = match attachment {
            Attachment::Direct => "Direct".into(),
            Attachment::Inherited => "Inherited".into(),
        };
    }
    (format!("{GROUP}_{}.yaml", K::PLURAL), definition)
}

/// What `kubectl get` shows; what has a priority, with `-o wide` only.
fn columns<K: Kind>() -> Vec<Value> {
    let condition = |kind: &str, field: &str| format!(".status.conditions[?(@.type==\"{kind}\")].{field}");
    let text = |name: &str, path: String| json!({ "name": name, "type": "string", "jsonPath": path });
    let mut columns: Vec<Value> = K::COLUMNS.iter().map(|(name, path)| text(name, (*path).into())).collect();
    columns.push(text("Accepted", condition("Accepted", "status")));
    columns.push(text("Enforced", condition("Enforced", "status")));
    for (name, path) in
        [("Reason", condition("Accepted", "reason")), ("Message", condition("Accepted", "message"))]
    {
        let mut column = text(name, path);
        column["priority"] = 1.into();
        columns.push(column);
    }
    columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
    columns
}

fn object_schema<K: Kind>() -> Value {
    let mut spec = structural_schema::<K>();
    take_true_for_on(&mut spec);
    let mut metadata = json!({ "type": "object" });
    if let Some(name) = K::name_schema() {
        let mut name = name.to_value();
        name["type"] = "string".into();
        metadata["properties"] = json!({ "name": name });
    }
    json!({
        "type": "object",
        "description": spec["description"],
        "required": ["spec"],
        "properties": {
            "apiVersion": { "type": "string", "description": format!("{GROUP}/{VERSION}") },
            "kind": { "type": "string", "description": K::KIND },
            "metadata": metadata,
            "spec": spec,
            "status": status_schema(),
        },
    })
}

/// In YAML 1.1, which `kubectl` reads, an unquoted `on` is a boolean, and the field that a person
/// called so arrives as `true`. It is accepted under that name as well, as by the Rust types.
fn take_true_for_on(schema: &mut Value) {
    if let Some(Value::Object(fields)) = schema.get_mut("properties") {
        fields.values_mut().for_each(take_true_for_on);
        if let Some(mut on) = fields.get("on").cloned() {
            on["description"] = "The field `on`, as kubectl reads it unquoted.".into();
            fields.insert("true".into(), on);
            let required = schema.get_mut("required").and_then(Value::as_array_mut);
            let needed = required.is_some_and(|names| {
                let before = names.len();
                names.retain(|name| name != "on");
                names.len() < before
            });
            let once =
                if needed { Rule::exactly_one(&["on", "true"]) } else { Rule::at_most_one("on", "true") };
            let once = serde_json::to_value(once).expect("a rule is JSON");
            match schema.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut) {
                Some(rules) => rules.push(once),
                None => schema["x-kubernetes-validations"] = Value::Array(vec![once]),
            }
        }
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(keyword) {
            take_true_for_on(inner);
        }
    }
}

/// What the control plane tells of an object: conditions, and for policies those of each object
/// that they attach to (Gateway API, `PolicyStatus`). More may be in it: one control plane's
/// definitions do not cut off what a newer one says.
fn status_schema() -> Value {
    let text = |description: &str, most: u32| json!({ "type": "string", "description": description, "maxLength": most });
    let condition = json!({
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": text("What it is about: Accepted, ResolvedRefs, Enforced.", 316),
            "status": { "type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds." },
            "observedGeneration": {
                "type": "integer", "format": "int64", "minimum": 0,
                "description": "The metadata.generation that was looked at.",
            },
            "lastTransitionTime": {
                "type": "string", "format": "date-time", "description": "When status changed last.",
            },
            "reason": text("Why, as a word.", 1024),
            "message": text("Why, for people; for Enforced with how many sidecars acknowledged it.", 32768),
        },
    });
    let conditions = |most: u32| {
        json!({
            "type": "array",
            "description": "How it is.",
            "maxItems": most,
            "items": condition,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        })
    };
    json!({
        "type": "object",
        "description": "What came of it, as the control plane says.",
        "properties": {
            "conditions": conditions(8),
            "ancestors": {
                "type": "array",
                "description": "The same for each object that the policy attaches to.",
                "maxItems": 16,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["ancestorRef", "controllerName"],
                    "properties": {
                        "ancestorRef": {
                            "type": "object",
                            "description": "The object.",
                            "required": ["name"],
                            "properties": {
                                "group": text("Its API group.", 253),
                                "kind": text("Its kind.", 63),
                                "namespace": text("Its namespace.", 63),
                                "name": text("Its name.", 253),
                                "sectionName": text("A part of it.", 253),
                                "port": { "type": "integer", "format": "int32", "description": "A port of it." },
                            },
                        },
                        "controllerName": text("Who says so: heddle.dev/control-plane.", 253),
                        "conditions": conditions(8),
                    },
                },
            },
        },
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

fn structural_schema<K: Kind>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<K>().to_value();
    make_structural(&mut schema);
    schema
}

fn make_structural(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    for keyword in ["$schema", "title", "default"] {
        object.remove(keyword);
    }
    // Where nothing says otherwise, the API server writes it down. Fields that are merged with
    // those of other policies have none: it would be taken for what somebody said.
    if let Some(value) = object.shift_remove("x-default") {
        object.insert("default".into(), value);
    }
    if object.get("additionalProperties") == Some(&Value::Bool(false)) {
        object.remove("additionalProperties");
    }
    unwrap_optional(object);
    merge_constants(object);
    for keyword in ["minimum", "maximum"] {
        // Whole numbers without a point, as other tools write them.
        if let Some(bound) = object.get_mut(keyword)
            && let Some(whole) = bound.as_f64().filter(|bound| bound.fract() == 0.0)
            && let Ok(whole) = format!("{whole:.0}").parse::<i64>()
        {
            *bound = whole.into();
        }
    }
    if let Some(Value::String(format)) = object.get("format")
        && format.starts_with("uint")
    {
        object.insert("format".into(), "int64".into());
    }
    if let Some(Value::String(description)) = object.get_mut("description") {
        // Line breaks of the source are no paragraphs of the text.
        *description = description.replace("\n\n", "\0").replace('\n', " ").replace('\0', "\n\n");
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(make_structural);
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(keyword) {
            make_structural(inner);
        }
    }
}

/// `Option<T>` may be `null` in JSON; in Kubernetes a null field is an absent one.
fn unwrap_optional(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get("type")
        && let Some(only) = types.iter().find(|name| *name != "null").cloned()
    {
        object.insert("type".into(), only);
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    let null = json!({ "type": "null" });
    if let Some(Value::Array(choices)) = object.get("anyOf")
        && choices.contains(&null)
        && let Some(Value::Object(inner)) = choices.iter().find(|choice| **choice != null).cloned()
    {
        object.remove("anyOf");
        for (keyword, value) in inner {
            object.entry(keyword).or_insert(value);
        }
        unwrap_optional(object);
    }
}

/// A documented enum comes as one constant per variant; Kubernetes knows `enum` only.
/// What the variants mean moves into the description.
fn merge_constants(object: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = object.get("oneOf") else { return };
    let Some(constants) =
        choices.iter().map(|choice| choice.get("const").cloned()).collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let meanings: Vec<String> = choices
        .iter()
        .filter_map(|choice| {
            Some(format!("{}: {}", choice.get("const")?.as_str()?, choice.get("description")?.as_str()?))
        })
        .collect();
    let description = object.get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{description}\n\n{}", meanings.join("\n\n"));
    object.remove("oneOf");
    object.insert("description".into(), description.into());
    object.insert("type".into(), "string".into());
    object.insert("enum".into(), constants.into());
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Set to write the files instead of comparing them.
    const UPDATE: &str = "HEDDLE_UPDATE_MANIFESTS";

    /// What lists the files for `kubectl apply -k`.
    const KUSTOMIZATION: &str = "kustomization.yaml";

    #[test]
    fn the_files_in_the_repository_are_up_to_date() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/crds");
        let listed = std::fs::read_to_string(folder.join(KUSTOMIZATION)).unwrap();
        for (file, definition) in manifests() {
            let (path, expected) = (folder.join(&file), yaml(&definition));
            if std::env::var_os(UPDATE).is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, &expected).unwrap();
            }
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(listed.contains(&format!("- {file}\n")), "{file} is not in {KUSTOMIZATION}");
            assert_eq!(found, expected, "{file} is old; run the tests of heddle-api with {UPDATE}=1");
        }
    }

    #[test]
    fn the_stream_reads_back_as_the_definitions() {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&render()).unwrap();
        let definitions: Vec<Value> = manifests().into_iter().map(|(_, definition)| definition).collect();
        assert_eq!(documents, definitions);
    }

    /// Structural schemas: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
    #[test]
    fn schemas_use_only_what_kubernetes_knows() {
        const KNOWN: [&str; 24] = [
            "additionalProperties",
            "default",
            "description",
            "enum",
            "exclusiveMaximum",
            "exclusiveMinimum",
            "format",
            "items",
            "maxItems",
            "maxLength",
            "maxProperties",
            "maximum",
            "minItems",
            "minLength",
            "minProperties",
            "minimum",
            "pattern",
            "properties",
            "required",
            "type",
            "x-kubernetes-int-or-string",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-list-type",
            "x-kubernetes-validations",
        ];

        fn check(path: &str, schema: &Value) {
            let object = schema.as_object().unwrap_or_else(|| panic!("{path} is {schema}"));
            for keyword in object.keys() {
                assert!(KNOWN.contains(&keyword.as_str()), "{path} has {keyword}");
            }
            let typed = object.get("type").is_some_and(Value::is_string);
            assert!(typed || object.contains_key("x-kubernetes-int-or-string"), "{path} has no type");
            if object.get("type") == Some(&json!("integer")) {
                let format = object.get("format").and_then(Value::as_str);
                assert!(matches!(format, None | Some("int32" | "int64")), "{path}: {format:?}");
            }
            for (name, inner) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
                check(&format!("{path}.{name}"), inner);
            }
            for needed in object.get("required").and_then(Value::as_array).into_iter().flatten() {
                let field = &object["properties"][needed.as_str().unwrap()];
                assert!(field.get("default").is_none(), "{path}.{needed} is needed and has a default");
            }
            for keyword in ["items", "additionalProperties"] {
                if let Some(inner) = object.get(keyword) {
                    check(&format!("{path}[]"), inner);
                }
            }
        }

        check("ExternalService.spec", &structural_schema::<ExternalServiceSpec>());
        check("FaultPolicy.spec", &structural_schema::<FaultPolicySpec>());
        check("MeshConfig.spec", &structural_schema::<MeshConfigSpec>());
        check("RateLimitPolicy.spec", &structural_schema::<RateLimitPolicySpec>());
        check("TelemetryPolicy.spec", &structural_schema::<TelemetryPolicySpec>());
        check("TrafficPolicy.spec", &structural_schema::<TrafficPolicySpec>());
    }
}
