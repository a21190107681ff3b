//! The example `order_saga`, as a user runs it: killed, run again, checked by its ledger.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod example;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::example::{assert_plain, program, wait_until};

/// The orders of the sample that are undone, and the reason in their failures.
const UNDONE: [(&str, &str); 6] = [
    ("A-1004", "the card was declined"),
    ("A-1007", "no carrier goes to FR"),
    ("A-1011", "dhl takes no parcels of 50000 g"),
    ("A-1012", "the card was declined"),
    ("A-1015", "there are only 50 of \"GEAR-08\""),
    ("A-1021", "no carrier goes to DK"),
];

struct Shop {
    dir: TempDir,
}

impl Shop {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, orders: &Path) -> Command {
        let mut command = Command::new(program("order_saga"));
        command
            .arg("--database")
            .arg(self.path("orders.db"))
            .arg("--ledger")
            .arg(self.path("ledger.jsonl"));
        command.args(["--latency", "40", "--json"]).arg(orders);
        command.stdin(Stdio::null()).env_remove("RUST_LOG");
        command
    }

    fn run(&self, orders: &Path) -> Output {
        let output = self.command(orders).output().unwrap();
        assert_plain(&output);
        output
    }

    /// What the orders of this text are answered, when the program is not to accept them.
    fn refused(&self, orders: &str) -> String {
        let path = self.path("some-orders.jsonl");
        fs::write(&path, orders).unwrap();
        let output = self.run(&path);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn ledger(&self) -> Vec<Line> {
        let text = fs::read_to_string(self.path("ledger.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        text[..whole].lines().map(Line::read).collect()
    }
}

struct Line {
    order: String,
    deed: String,
    detail: String,
    key: String,
    repeated: bool,
}

impl Line {
    fn read(line: &str) -> Self {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        Self {
            order: text("order"),
            deed: text("deed"),
            detail: text("detail"),
            key: text("key"),
            repeated: line["repeated"].as_bool().unwrap(),
        }
    }
}

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("order_saga/orders.jsonl")
}

/// Checks an answer's end of each order against what the ledger says was done for it.
fn check(shop: &Shop, answer: &Output, kills: usize) {
    let ended: Vec<Value> = serde_json::from_slice(&answer.stdout).unwrap();
    let sample = fs::read_to_string(sample()).unwrap();
    assert_eq!(ended.len(), sample.lines().count());
    let mut done: BTreeMap<String, BTreeMap<String, Vec<Line>>> = BTreeMap::new();
    let mut asked: BTreeMap<String, usize> = BTreeMap::new();
    for line in shop.ledger() {
        let before = asked.entry(line.key.clone()).or_default();
        assert_eq!(line.repeated, *before > 0, "{} of {}", line.deed, line.order);
        *before += 1;
        if !line.repeated {
            done.entry(line.order.clone())
                .or_default()
                .entry(line.deed.clone())
                .or_default()
                .push(line);
        }
    }
    assert!(
        asked.values().all(|times| *times <= 1 + kills),
        "what is journaled is not asked for again"
    );
    for (ended, order) in ended.iter().zip(sample.lines()) {
        let order: Value = serde_json::from_str(order).unwrap();
        let id = order["id"].as_str().unwrap();
        assert_eq!(ended["order"], id);
        let done = done.get(id);
        let times = |deed: &str| done.and_then(|done| done.get(deed)).map_or(0, Vec::len);
        let items = order["items"].as_array().unwrap();
        match UNDONE.iter().find(|(undone, _)| *undone == id) {
            None => {
                assert_eq!(ended["outcome"], "shipped", "{ended}");
                assert_eq!((times("reserve"), times("charge"), times("ship")), (1, 1, 1), "{id}");
                assert_eq!(
                    (times("refund"), times("release"), times("pick")),
                    (0, 0, items.len()),
                    "{id}"
                );
                let number = |item: &Value, what: &str| item[what].as_u64().unwrap();
                let cents: u64 =
                    items.iter().map(|item| number(item, "quantity") * number(item, "cents")).sum();
                assert_eq!(done.unwrap()["charge"][0].detail, format!("{cents} cents"));
            }
            Some((_, why)) => {
                assert_eq!(ended["outcome"], "undone", "{ended}");
                assert!(ended["why"].as_str().unwrap().ends_with(why), "{ended}");
                assert_eq!(times("ship"), 0, "{id}");
                assert_eq!(times("charge"), times("refund"), "{id}");
                assert_eq!(times("reserve"), times("release"), "{id}");
                assert!(times("charge") <= 1 && times("reserve") <= 1, "{id}");
            }
        }
    }
}

#[test]
fn killed_at_every_stage_it_ships_or_undoes_each_order_once() {
    let shop = Shop::new();
    let mut kills = 0;
    for deed in ["reserve", "charge", "refund", "ship"] {
        let mut child =
            shop.command(&sample()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until(&mut child, || shop.ledger().iter().any(|line| line.deed == deed));
        child.kill().unwrap();
        kills += usize::from(child.wait_with_output().unwrap().status.code().is_none());
    }
    assert!(kills > 0, "no kill came while it worked");
    let output = shop.run(&sample());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "24 of the 24 orders were started before.\n"
    );
    check(&shop, &output, kills);

    let lines = shop.ledger().len();
    let again = shop.run(&sample());
    assert_eq!(again.stdout, output.stdout);
    assert_eq!(shop.ledger().len(), lines, "what is done is not done again");
}

#[test]
fn the_graph_names_every_part() {
    let output = Command::new(program("order_saga")).arg("--graph").output().unwrap();
    let graph = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && graph.starts_with("flowchart TD\n"), "{graph}");
    let parts: BTreeSet<_> = graph.lines().filter_map(|line| line.split('"').nth(1)).collect();
    let expected = [
        "charge ↩",
        "carrier",
        "dhl",
        "invoice",
        "label",
        "packed",
        "papers",
        "pick",
        "reserve ↩",
        "royal mail",
        "ups",
    ];
    assert_eq!(parts, BTreeSet::from(expected));
    assert!(graph.contains("-->|\"dhl\"|"), "{graph}");
}

#[test]
fn orders_that_are_none_get_a_clear_answer_and_start_nothing() {
    let shop = Shop::new();
    let good = concat!(
        r#"{"id":"B-1","customer":"Ada","country":"GB","card":"4242424242424242","#,
        r#""items":[{"sku":"CUP","quantity":1,"cents":650,"grams":180}]}"#,
    );
    for (text, answer) in [
        (String::new(), "holds no orders"),
        (format!("{good}\nnot json"), "line 2 of "),
        (format!("{good}\n\n{good}"), "the order B-1 is on line 1 already: give each its own `id`"),
        (
            good.replace("\"GB\"", "\"Britain\""),
            "the `country` has to be a code of two capital letters",
        ),
        (
            good.replace("4242424242424242", "4242 4242"),
            "the `card` has to be a number of 12 to 19 digits",
        ),
        (good.replace("\"quantity\":1", "\"quantity\":0"), "the `quantity` of \"CUP\" is 0"),
        (good.replace("\"quantity\":1", "\"quantity\":-1"), "line 1 of "),
        (good.replace("B-1", r"B\u001b[31m"), "the `id` has to have 1 to 100 printable characters"),
        (good.replace("\"grams\"", "\"weight\""), "unknown field `weight`"),
    ] {
        let said = shop.refused(&text);
        assert!(said.starts_with("order_saga: ") && said.contains(answer), "{said}");
    }
    assert!(!shop.path("orders.db").exists() && !shop.path("ledger.jsonl").exists());

    let path = shop.path("orders.jsonl");
    fs::write(&path, good).unwrap();
    assert!(shop.run(&path).status.success());
    let said = shop.refused(&good.replace("650", "1"));
    assert!(said.contains("the order B-1 was started before, and was another"), "{said}");
    let said = String::from_utf8(shop.run(Path::new("/no/such/file")).stderr).unwrap();
    assert!(said.starts_with("order_saga: cannot read /no/such/file: "), "{said}");
    fs::write(shop.path("ledger.jsonl"), "no ledger\n").unwrap();
    let said = String::from_utf8(shop.run(&path).stderr).unwrap();
    assert!(said.contains("line 1 is not one of a ledger"), "{said}");
}
