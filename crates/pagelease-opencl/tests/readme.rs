//! What the README shows of the two examples is in them, and they have as many lines as it says.

const README: &str = include_str!("../README.md");

/// Without comments and empty lines.
fn code(source: &str) -> impl Iterator<Item = &str> {
    source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"))
}

#[test]
fn the_readme_shows_the_examples() {
    let blocks: Vec<_> =
        README.split("```rust,ignore\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    let examples = [include_str!("../examples/opencl_staging.rs"), include_str!("../examples/opencl_shared.rs")];
    assert_eq!(blocks.len(), examples.len());
    for (block, example) in blocks.iter().zip(examples) {
        let mut lines = code(example);
        for line in code(block) {
            assert!(lines.any(|other| other == line), "not in the example, or not in this order: {line}");
        }
    }
    let [staging, shared] = examples.map(|example| code(example).count());
    assert!(README.contains(&format!("| lines | {staging} | {shared} |")), "{staging} and {shared} lines");
}
