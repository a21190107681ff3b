use super::*;
use crate::cargo;

#[test]
fn every_entry_fits_the_code_and_has_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    let root = cargo::root().unwrap();
    let mut misfits = Vec::new();
    for bug in all() {
        assert!(names.insert(bug.name), "{} is there twice", bug.name);
        let text = fs::read_to_string(root.join(bug.file)).unwrap_or_default();
        if matching::places(&text, bug.find).len() != 1 {
            misfits.push(format!("{}: its text in {}", bug.name, bug.file));
        }
        assert!(bug.find != bug.put && !bug.tests.is_empty(), "{}", bug.name);
    }
    assert!(misfits.is_empty(), "{misfits:#?}");
}

#[test]
fn the_parts_are_the_whole() {
    let table = Table::of_the_page().unwrap();
    let part = |place| Options { part: Some(Part { place, of: 7 }), ..Options::default() };
    let parts = (1..=7).flat_map(|place| part(place).chosen(&table).unwrap());
    assert!(parts.map(|bug| bug.name).eq(all().map(|bug| bug.name)));
    assert!("0/3".parse::<Part>().is_err() && "4/3".parse::<Part>().is_err());
    assert_eq!("3/3".parse::<Part>().unwrap(), Part { place: 3, of: 3 });
    assert!(
        Options { only: vec!["nonsense".into()], ..Options::default() }.chosen(&table).is_err()
    );
    let new = Options { new: true, ..Options::default() };
    assert!(new.chosen(&table).unwrap().into_iter().all(|bug| !table.has(bug)));
}

#[test]
fn how_tests_ended_is_read_from_what_nextest_prints() {
    let printed = "    Starting 2 tests across 1 binary
        PASS [   0.004s] (1/3) stepwell-core journal::tests::a
        SLOW [>  60.000s] (───) stepwell::worker b
     TIMEOUT [ 120.012s] (2/3) stepwell::worker b
     SIGABRT [   0.100s] (3/3) stepwell::worker c
────────────
     Summary [ 120.020s] 3 tests run: 1 passed, 1 failed, 1 timed out";
    let ends = ends_of(printed);
    let ends: Vec<_> =
        ends.iter().map(|(how, binary, name)| (&**how, &**binary, &**name)).collect();
    assert_eq!(
        ends,
        [
            ("PASS", "stepwell-core", "journal::tests::a"),
            ("TIMEOUT", "stepwell::worker", "b"),
            ("SIGABRT", "stepwell::worker", "c")
        ]
    );
    assert!(fails("stepwell-core", "lib", "a").is("stepwell-core", "journal::tests::a"));
    assert!(!fails("stepwell-core", "lib", "a").is("stepwell-core", "journal::tests::ba"));
    assert!(!fails("stepwell", "worker", "b").is("stepwell-core::worker", "b"));
}

#[test]
fn a_text_is_found_however_its_lines_are_broken() {
    let text =
        "fn f() {\n    // It is\n    // long.\n    g(\n        one,\n        two,\n    );\n}\n";
    let found = matching::places(text, "// It is long.\n    g(one, two);");
    assert_eq!(found.len(), 1);
    assert_eq!(&text[found[0].clone()], text[13..text.len() - 3].trim());
    assert_eq!(matching::places("a(b); a( b );", "a(b);").len(), 2);
    assert_eq!(matching::places("a(b)", "a(c)"), []);
}
