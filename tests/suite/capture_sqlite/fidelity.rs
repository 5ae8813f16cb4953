//! Values come back as they were stored, through triggers and images, whatever they are.

use branchline::catalog::Column;
use branchline::record::Value;
use branchline::store::sqlite::{changes, image, literals};
use branchline::store::{Cell, Datum, Session};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::bench::Bench;

const COLUMNS: usize = 10;
const TABLES: &str =
    "CREATE TABLE v (a INTEGER, b REAL, c TEXT, d BLOB, e DECIMAL(10,2), f BOOLEAN,
        g DATETIME, h, i VARCHAR(20), j UUID);
    CREATE TABLE w (a INTEGER, b REAL, c TEXT, d BLOB, e DECIMAL(10,2), f BOOLEAN, g DATETIME, h,
        i VARCHAR(20), j UUID);";

fn any_datum() -> impl Strategy<Value = Datum> {
    let text = prop_oneof![
        any::<String>(),
        "[',a\0\u{1f600}é\\\\X]{0,6}",
        "-?[0-9]{1,20}(\\.[0-9]{1,5})?",
        Just("NaN".to_owned()),
        Just("NULL".to_owned()),
    ];
    prop_oneof![
        Just(Datum::Int(None)),
        prop_oneof![any::<i64>(), -2_i64..3, Just(i64::MIN), Just(i64::MAX)].prop_map(Datum::from),
        prop_oneof![
            any::<f64>().prop_filter("SQLite has no NaN", |number| !number.is_nan()),
            (any::<i32>(), -12_i32..12).prop_map(|(n, e)| f64::from(n) * 10_f64.powi(e)),
            Just(f64::INFINITY),
            Just(f64::NEG_INFINITY),
            Just(f64::MIN_POSITIVE / 8.0),
            Just(1e308),
            Just(-0.0),
        ]
        .prop_map(|number| Datum::Float(Some(number))),
        text.prop_map(Datum::from),
        proptest::collection::vec(any::<u8>(), 0..6).prop_map(Datum::from),
    ]
}

async fn insert(session: &mut Session, table: &str, rows: Vec<Vec<Datum>>) {
    let binds: Vec<String> = (1..=COLUMNS).map(|n| format!("${n}")).collect();
    let sql = format!("INSERT INTO {table} VALUES ({})", binds.join(", "));
    session.execute_each(&sql, rows).await.unwrap();
}

/// What lies in the table, as SQLite itself gives it.
async fn stored(session: &mut Session, table: &str) -> Vec<Vec<Cell>> {
    let sql = format!("SELECT * FROM {table} ORDER BY rowid");
    session.query(&sql, vec![]).await.unwrap().into_iter().map(|row| row.0).collect()
}

fn cell(value: Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::Int(number) => Cell::Int(number),
        Value::Float(number) => Cell::Float(number),
        Value::Text(text) => Cell::Text(text),
        Value::Bytes(bytes) => Cell::Bytes(bytes),
        other => panic!("{other:?}"),
    }
}

/// Floats by their bits. In SQL text SQLite loses the sign of zero.
fn bits(rows: &[Vec<Cell>]) -> Vec<Vec<String>> {
    let one = |cell: &Cell| match cell {
        Cell::Float(number) if *number == 0.0 => "float 0".to_owned(),
        Cell::Float(number) => format!("float {:x}", number.to_bits()),
        other => format!("{other:?}"),
    };
    rows.iter().map(|row| row.iter().map(one).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_value_is_captured_as_it_is_stored_and_written_back_the_same() {
    let bench = Bench::new(TABLES).await;
    let class = bench.catalog.class("v").unwrap().class.clone();
    let columns: Vec<Option<&Column>> = class.columns.iter().map(Some).collect();
    let plain = vec![None; COLUMNS];
    let mut runner = TestRunner::deterministic();
    let row = proptest::collection::vec(any_datum(), COLUMNS);
    let many = proptest::collection::vec(row, 1_500);
    for _ in 0..2 {
        let rows = many.new_tree(&mut runner).unwrap().current();
        let mut session = bench.store.begin().await.unwrap();
        insert(&mut session, "v", rows).await;
        let expected = stored(&mut session, "v").await;

        let images = changes::read(&mut session, &bench.catalog, 10_000).await.unwrap().rows;
        let read =
            |columns: &[Option<&Column>], image: &str| image::decode(image, columns).unwrap();
        let captured: Vec<Vec<Cell>> = images
            .iter()
            .map(|row| read(&plain, row.text(6).unwrap()).into_iter().map(cell).collect())
            .collect();
        assert_eq!(format!("{captured:?}"), format!("{expected:?}"));

        // As it travels, and written to a table of the same types.
        let travelling: Vec<Vec<Value>> =
            images.iter().map(|row| read(&columns, row.text(6).unwrap())).collect();
        let binds = travelling.iter().map(|values| {
            values.iter().zip(&class.columns).map(|(v, c)| image::datum(v, c)).collect()
        });
        insert(&mut session, "w", binds.collect()).await;
        let sql = format!("SELECT {} FROM w ORDER BY rowid", literals::image_sql(&class, "w"));
        let again: Vec<Vec<Value>> = session
            .query(&sql, vec![])
            .await
            .unwrap()
            .iter()
            .map(|row| read(&columns, row.text(0).unwrap()))
            .collect();
        let text = |rows: &[Vec<Value>]| format!("{rows:?}").replace("-0.0", "0.0");
        assert_eq!(text(&again), text(&travelling));
        session.commit().await.unwrap();

        // An older SQLite writes the same images.
        let sql = format!("SELECT hex({}) FROM v ORDER BY rowid", literals::image_sql(&class, "v"));
        let printed = bench.shell(&sql);
        let old: Vec<Vec<Cell>> = printed
            .lines()
            .map(|line| {
                let bytes: Vec<u8> = (0..line.len() / 2)
                    .map(|n| u8::from_str_radix(&line[2 * n..2 * n + 2], 16).unwrap())
                    .collect();
                let image = String::from_utf8(bytes).unwrap();
                read(&plain, &image).into_iter().map(cell).collect()
            })
            .collect();
        assert_eq!(bits(&old), bits(&expected));
        bench.shell("DELETE FROM v; DELETE FROM w; DELETE FROM sync_change");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgresql_sends_comes_back_equal_by_declared_type() {
    let bench = Bench::new(TABLES).await;
    let class = bench.catalog.class("v").unwrap().class.clone();
    let text = |text: &str| Value::Text(text.to_owned());
    let cases: &[(&str, Value, Value)] = &[
        ("f", Value::Bool(true), Value::Bool(true)),
        ("f", Value::Bool(false), Value::Bool(false)),
        ("a", Value::Int(i64::MIN), Value::Int(i64::MIN)),
        ("b", Value::Float(0.1 + 0.2), Value::Float(0.1 + 0.2)),
        ("b", Value::Float(f64::INFINITY), Value::Float(f64::INFINITY)),
        ("b", Value::Float(7.0), Value::Float(7.0)),
        ("e", text("1.50"), text("1.5")),
        ("e", text("-12"), text("-12")),
        ("e", text("0.1"), text("0.1")),
        ("e", text("123456789012345.678"), text("123456789012345.67")),
        ("e", text("NaN"), text("NaN")),
        ("e", text("-Infinity"), text("-Infinity")),
        ("g", text("2024-01-02T03:04:05.123456Z"), text("2024-01-02T03:04:05.123456Z")),
        ("g", text("0044-03-15 00:00:00 BC"), text("0044-03-15 00:00:00 BC")),
        (
            "j",
            text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
            text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ),
        ("c", text("123456789012345678901234567890.10"), text("123456789012345678901234567890.10")),
        ("i", text("\u{1f600}'"), text("\u{1f600}'")),
        ("d", Value::Bytes(vec![0, 39, 255]), Value::Bytes(vec![0, 39, 255])),
        ("h", Value::Null, Value::Null),
    ];
    let mut session = bench.store.begin().await.unwrap();
    for (name, sent, expected) in cases {
        let column = &class.columns[class.position(name).unwrap()];
        let sql = format!("INSERT INTO v ({name}) VALUES ($1)");
        session.execute(&sql, vec![image::datum(sent, column)]).await.unwrap();
        let sql = format!("SELECT {} FROM v", literals::image_sql(&class, "v"));
        let row = session.query_one(&sql, vec![]).await.unwrap();
        let columns: Vec<Option<&Column>> = class.columns.iter().map(Some).collect();
        let values = image::decode(row.text(0).unwrap(), &columns).unwrap();
        assert_eq!(values[class.position(name).unwrap()], *expected, "{name}");
        session.execute("DELETE FROM v", vec![]).await.unwrap();
    }
    let column = &class.columns[1];
    session
        .execute(
            "INSERT INTO v (b) VALUES ($1)",
            vec![image::datum(&Value::Float(f64::NAN), column)],
        )
        .await
        .unwrap();
    let row = session.query_one("SELECT b FROM v", vec![]).await.unwrap();
    let values = image::decode(&format!("'{}'", row.text(0).unwrap()), &[Some(column)]).unwrap();
    assert!(matches!(values[0], Value::Float(number) if number.is_nan()));
}
