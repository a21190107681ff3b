//! Tests that the page about the format describes the tables as they are.

use std::collections::BTreeMap;

use super::*;

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md"));

/// Returns the columns that the page describes for a table, with the rows of the page.
fn described(table: &str) -> BTreeMap<&'static str, &'static str> {
    let heading = format!("`{table}`");
    let is_of_table = |section: &&str| section.lines().next().unwrap().contains(&heading);
    let section = PAGE.split("\n### ").skip(1).find(is_of_table).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| {
        let names = row[2..].split(" | ").next().unwrap().split(", ");
        names.map(move |name| (name.trim_matches('`'), row))
    })
    .collect()
}

#[test]
fn every_column_is_on_the_page_and_no_other() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    let columns = on_writer(&store, |conn| {
        let sql = "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c
            WHERE t.type = 'table' AND t.name LIKE 'stepwell\\_%' ESCAPE '\\'";
        let mut statement = conn.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<Result<Vec<(String, String)>, _>>().unwrap()
    });
    let mut tables = BTreeMap::<_, Vec<_>>::new();
    for (table, column) in columns {
        tables.entry(table).or_default().push(column);
    }
    assert_eq!(tables.remove("stepwell_schema"), Some(vec!["version".to_owned()]));
    assert!(PAGE.contains("| `stepwell_schema` in SQLite"));
    assert_eq!(tables.len(), 12);
    for (table, columns) in tables {
        let described = described(&table);
        for column in &columns {
            assert!(described.contains_key(&**column), "{table}.{column} is not on the page");
        }
        for (column, row) in described {
            let is_there = columns.iter().any(|other| other == column);
            assert!(is_there || row.contains("(PostgreSQL only)"), "{table} has no {column}");
        }
    }
}

#[test]
fn the_queries_of_the_page_run() {
    let store = wait(SqliteStore::open(Location::Memory, Manual::new())).unwrap();
    commit(&store, spawns(vec![new_task(1)]));
    let queries: Vec<_> = PAGE.split("```sql\n").skip(1).collect();
    assert_eq!(queries.len(), 3);
    let rows = on_writer(&store, move |conn| {
        let rows = |page: &str| {
            let mut query = conn.prepare(page.split("```").next().unwrap()).unwrap();
            query.query_map([], |_| Ok(())).unwrap().map(Result::unwrap).count()
        };
        queries.into_iter().map(rows).collect::<Vec<_>>()
    });
    assert_eq!(rows, [1, 0, 0]);
}
