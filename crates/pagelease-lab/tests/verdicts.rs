//! docs/VERDICTS.md says what the lab finds: every design is checked in every scenario, and every figure compared.
//!
//! Where a model or a design has changed, `UPDATE=1 cargo test -p pagelease-lab --test verdicts` writes the new figures; then
//! read what the document says of them.

use std::path::Path;

use pagelease_lab::table::{Progress, Table, Verdict};
use pagelease_lab::{Property, catalogue, verdicts};

#[test]
fn the_document_has_the_figures_of_the_lab() {
    let entries = catalogue::all();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let table = Table::check(&entries, threads, 20_000_000, &Progress::default()).expect("every check is small enough");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/VERDICTS.md");
    let document = std::fs::read_to_string(&path).expect("docs/VERDICTS.md can be read");
    let updated = verdicts::update(&document, &table).expect("the document has every part");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &updated).expect("docs/VERDICTS.md can be written");
    } else if updated != document {
        let changed = updated.lines().zip(document.lines()).find(|(new, old)| new != old);
        panic!("docs/VERDICTS.md is not what the lab finds; the first difference (found, written): {changed:?}");
    }
    claims_of_the_project(&table);
    let largest = table.rows.iter().map(|row| row.largest).max();
    assert!(largest >= Some(1_000_000), "the largest check has {largest:?} states");
}

/// What the document says in words, of the shipped protocol above all.
fn claims_of_the_project(table: &Table) {
    for row in table.rows.iter().filter(|row| row.design.starts_with("pagelease")) {
        for (property, verdict) in &row.verdicts {
            let right = match property {
                Property::Pins => matches!(verdict, Verdict::Broken { .. }),
                Property::Protected | Property::Snapshot | Property::ForkSucceeds | Property::ForkEnds => {
                    *verdict == Verdict::Untested
                }
                Property::Spurious => matches!(verdict, Verdict::Counted { worst: Some(0), .. }),
                _ => *verdict == Verdict::Holds,
            };
            assert!(right, "{}: {property} is {verdict:?}", row.design);
        }
        assert!(row.never_fired.is_empty(), "{}: {:?} never fired", row.design, row.never_fired);
    }
    let broken: Vec<_> = Property::ALL
        .iter()
        .filter(|property| {
            table.rows.iter().any(|row| match row.verdict(**property) {
                Verdict::Broken { .. } => true,
                Verdict::Counted { worst, .. } => *worst != Some(0),
                Verdict::Holds | Verdict::Untested => false,
            })
        })
        .collect();
    // `fork-ends` is broken by a mutant only: see tests/fails.rs.
    let unbroken: Vec<_> = Property::ALL.iter().filter(|property| !broken.contains(property)).collect();
    assert_eq!(unbroken, [&Property::ForkEnds], "no design breaks these");
}
