use super::*;

/// What the checks find in these texts.
fn found(texts: &[(&str, &str)]) -> Vec<(&'static str, usize)> {
    let texts = texts.iter().map(|(path, text)| Ok(((*path).to_owned(), (*text).to_owned())));
    let sources = Sources::new(texts).unwrap();
    findings(&sources).into_iter().map(|finding| (finding.rule, finding.line)).collect()
}

const LIB: (&str, &str) = ("crates/x/src/lib.rs", "mod one;\nmod two;\nmod three;\n");

#[test]
fn a_line_of_101_columns_is_found_and_a_link_is_not() {
    let long = "x".repeat(101);
    assert_eq!(found(&[("docs/a.md", &long)]), [("width", 1)]);
    assert_eq!(found(&[("docs/a.md", &long[1..])]), []);
    assert_eq!(found(&[("docs/a.md", &format!("[x](https://{long})"))]), []);
    assert_eq!(found(&[("docs/a.md", &format!("| {long} |"))]), []);
    assert_eq!(found(&[("a.sql", &format!("select 1;\n-- {long}"))]), [("width", 2)]);
}

#[test]
fn a_function_of_71_lines_is_found_unless_it_is_a_test() {
    let body = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
    assert_eq!(found(&[("crates/x/src/lib.rs", &body(70))]), []);
    assert_eq!(found(&[("crates/x/src/lib.rs", &body(71))]), [("length", 1)]);
    assert_eq!(
        found(&[("crates/x/src/lib.rs", &format!("#[cfg(test)]\nmod tests {{\n{}}}", body(71)))]),
        []
    );
}

#[test]
fn a_summary_that_is_no_sentence_is_found() {
    let text =
        "//! A crate.\n\n/// Whether it is so.\nfn f() {}\n\n/// Returns `true`.\nfn g() {}\n";
    assert_eq!(found(&[("crates/x/src/lib.rs", text)]), [("summary", 3)]);
}

#[test]
fn a_banned_word_is_found_in_prose_and_not_in_code() {
    assert_eq!(found(&[("docs/a.md", "Whoever reads `anew` this.")]), [("word", 1)]);
    assert_eq!(found(&[("docs/a.md", "The column `poked` is a flag.")]), []);
    assert_eq!(
        found(&[("crates/x/src/lib.rs", "fn anew() {}\n// It begins anew.\n")]),
        [("word", 2)]
    );
}

#[test]
fn a_file_that_no_module_names_is_found() {
    let (one, two, three) =
        ("crates/x/src/one.rs", "crates/x/src/two.rs", "crates/x/src/three/mod.rs");
    assert_eq!(found(&[LIB, (one, ""), (two, ""), (three, "")]), []);
    assert_eq!(found(&[LIB, (one, ""), ("crates/x/src/four.rs", "")]), [("dead", 1)]);
}

#[test]
fn a_circle_of_three_modules_is_found_and_a_pair_is_not() {
    let (one, two, three) = ("crates/x/src/one.rs", "crates/x/src/two.rs", "crates/x/src/three.rs");
    let pair = [
        LIB,
        (one, "use crate::two::A;"),
        (two, "use crate::one::B;"),
        (three, "use crate::one::B;"),
    ];
    assert_eq!(found(&pair), []);
    let circle = [
        LIB,
        (one, "use crate::two::A;"),
        (two, "fn f() { crate::three::g() }"),
        (three, "use super::one::B;"),
    ];
    assert_eq!(found(&circle), [("circle", 1)]);
    let of_a_test = [
        LIB,
        (one, "use crate::two::A;"),
        (two, "#[cfg(test)]\nuse crate::three::g;"),
        (three, "use crate::one::B;"),
    ];
    assert_eq!(found(&of_a_test), []);
}

#[test]
fn an_import_from_a_layer_above_is_found() {
    let lib = ("crates/stepwell-core/src/lib.rs", "mod base;\nmod engine;\n");
    let (base, engine) = ("crates/stepwell-core/src/base.rs", "crates/stepwell-core/src/engine.rs");
    assert_eq!(found(&[lib, (base, ""), (engine, "use crate::base::A;")]), []);
    assert_eq!(found(&[lib, (base, "fn f(_: crate::engine::A) {}"), (engine, "")]), [("layer", 1)]);
    let other = ("crates/stepwell-core/src/lib.rs", "mod base;\nmod other;\n");
    assert_eq!(
        found(&[other, (base, ""), ("crates/stepwell-core/src/other.rs", "")]),
        [("layer", 1)]
    );
}

#[test]
fn an_engine_that_is_too_long_for_an_evening_is_found() {
    let page = |lines: usize| {
        let row = format!("| `engine.rs` | {lines} | what it is |");
        format!(
            "# A page\n\n## The engine in an evening\n\n{row}\n\n## Else\n\n| `x.rs` | 1 | no |\n"
        )
    };
    let finds = |said: usize, lines: usize| {
        let code = format!("{}#[cfg(test)]\nmod tests {{\n}}\n", "// a line\n".repeat(lines));
        let lib = ("crates/stepwell-core/src/lib.rs", "mod engine;\n");
        found(&[
            lib,
            ("crates/stepwell-core/src/engine.rs", &code),
            ("ARCHITECTURE.md", &page(said)),
        ])
    };
    assert_eq!(finds(100, 105), []);
    assert_eq!(finds(100, 120), [("evening", 5)]);
    assert_eq!(finds(6_000, 6_000), []);
    assert_eq!(finds(6_000, 6_001), [("evening", 1)]);
}

#[test]
fn an_excuse_is_for_as_many_findings_as_there_are() {
    let finding = |line| Finding::new("width", "a.rs", line, "");
    let excuses = Excuses::parse("# why\nwidth a.rs 2 they are tables\n").unwrap();
    assert_eq!(excuses.judge(&[finding(1), finding(2)]), []);
    assert_eq!(excuses.judge(&[finding(1), finding(2), finding(3)]).len(), 3);
    assert_eq!(excuses.judge(&[finding(1)])[0].rule, "excuse");
    assert!(Excuses::parse("width a.rs 2\n").is_err());
}
