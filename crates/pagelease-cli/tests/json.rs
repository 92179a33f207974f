//! docs/JSON.md says what `--json` prints: the same keys, of the same kinds, each explained.

mod common;

use common::{Scratch, json, pagelease};
use serde_json::Value;

/// The example and the table under the heading of a command.
fn documented(command: &str) -> (Value, &'static str) {
    let documentation = include_str!("../../../docs/JSON.md");
    let (_, section) = documentation.split_once(&format!("## `pagelease {command} --json`")).expect("its section");
    let section = section.split("\n## ").next().expect("a first part");
    let (_, example) = section.split_once("```json").expect("an example");
    let (example, table) = example.split_once("```").expect("the end of the example");
    (serde_json::from_str(example).expect("JSON"), table)
}

/// Both have the same keys, all the way down, and values of the same kind where the documentation has one.
fn assert_alike(documented: &Value, printed: &Value, at: &str) {
    match (documented, printed) {
        (Value::Object(documented), Value::Object(printed)) => {
            assert_eq!(documented.keys().collect::<Vec<_>>(), printed.keys().collect::<Vec<_>>(), "{at}");
            documented.iter().for_each(|(key, value)| assert_alike(value, &printed[key], &format!("{at}.{key}")));
        }
        (Value::Array(documented), Value::Array(printed)) => {
            printed.iter().for_each(|value| assert_alike(&documented[0], value, at));
        }
        (Value::Null, _) | (_, Value::Null) => {}
        _ => {
            let kind = |value: &Value| (value.is_string(), value.is_number(), value.is_boolean());
            assert_eq!(kind(documented), kind(printed), "{at}");
        }
    }
}

#[test]
fn histogram() {
    let (example, table) = documented("run histogram");
    let scratch = Scratch::new("json");
    assert_alike(&example, &json(&scratch.file("data", b"abc"), &[]), "histogram");
    for key in example.as_object().expect("an object").keys() {
        assert!(table.contains(&format!("\n| `{key}` |")), "{key} is not explained");
    }
}

#[test]
fn bench() {
    let (example, table) = documented("bench");
    let output = pagelease(&["bench", "repeat", "--quick", "--json"]).output().expect("it starts");
    assert!(output.status.success(), "{output:?}");
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(!printed.as_array().expect("an array").is_empty());
    assert_alike(&example, &printed, "bench");
    for key in example[0].as_object().expect("an object").keys() {
        assert!(table.contains(&format!("\n| `{key}` |")), "{key} is not explained");
    }
}

#[test]
fn doctor() {
    let (example, table) = documented("doctor");
    let output = pagelease(&["doctor", "--json"]).output().expect("it starts");
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.success(), printed["ready"] == true, "{output:?}");
    assert_alike(&example, &printed, "doctor");
    for key in example.as_object().expect("an object").keys() {
        assert!(table.contains(&format!("`{key}")), "{key} is not explained");
    }
}
