//! Every type, in full fidelity.

use std::sync::Arc;

use branchline::catalog::{Class, Column};
use branchline::record::Value;
use branchline::store::image::bind_sql;
use branchline::store::postgres::image;
use branchline::store::{Datum, Dialect};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::bench::Bench;

/// A column of each built-in type.
const TYPES: &str = r#"
    CREATE TYPE mood AS ENUM ('so so', 'glad');
    CREATE DOMAIN small AS int CHECK (VALUE < 1000); CREATE DOMAIN smaller AS small;
    CREATE TYPE pair AS (a int, b text, c timestamptz);
    CREATE TABLE every (id serial PRIMARY KEY, uuid uuid UNIQUE NOT NULL, a smallint, b bigint,
    c numeric, d numeric(8,3), e real, f double precision, g money, h char(5), i varchar(9), j text,
    k bytea, l timestamp, m timestamptz, n date, o time, p timetz, q interval, r boolean, s mood,
    t point, u box, v path, w cidr, x inet, y macaddr, z bit(5), aa varbit, ab tsvector, ac xml,
    ad json, ae jsonb, af int[], ag text[], ah timestamptz[], ai int4range, aj tstzrange,
    ak int4multirange, al smaller, am pair, an pair[], ao uuid[], ap bytea[], aq name, ar "char",
    at oid, au pg_lsn, av jsonpath, aw tsquery, ax numrange, ay regclass, az interval[],
    ba char(3)[], bb int GENERATED ALWAYS AS (a * 2) STORED, bc int DEFAULT 7, bd money[],
    be macaddr8, bf txid_snapshot, bg circle, bh line, bi lseg, bj polygon, bk tstzmultirange);"#;

/// Values that are worth a look.
const VALUES: &str = r#"
    INSERT INTO every VALUES (1, 'ABCDEF00-0000-0000-0000-000000000001', -32768,
    9223372036854775807, 1.00, 12345.600, 0.1, 0.1, 1234.5, 'ab', 'varchar',
    E'all "of" it, \\ (and) \n\t more 😀 ''x', '\x00ff', '2024-02-29 01:02:03.456789',
    '2024-02-29 01:02:03.4+05:30', '0044-03-15 BC', '24:00', '01:02:03+05:30',
    '1 year -2 mons +3 days -04:05:06.7', true, 'so so', '(1.5,-2)', '(3,4),(1,2)',
    '[(0,0),(1,1)]', '10.0.0.0/8', '::1', '08:00:2b:01:02:03', B'10101', B'1', 'a:1 b:2A',
    '<a>&amp;</a>', '{"b": 1,  "a":[1.0 ,null]}', '{"b": 1,  "a":[1.0 ,null]}', '{1,NULL,3}',
    '{"a b",NULL,"","NULL","x\"y"}', '{"2024-01-01 00:00:00+02"}', '[1,5)',
    '["2024-01-01 00:00:00+02",)', '{[1,2),[5,9)}', 7, ROW(1, 'x, "y"', '2024-01-01 00:00:00+02'),
    ARRAY[ROW(1, NULL, NULL)::pair, NULL], '{abcdef00-0000-0000-0000-000000000001}',
    '{"\\x00","\\xff"}', 'name', 'c', 4294967295, '16/B374D848', '$.a[*]', 'a & !b', '(,1.10]',
    'pg_class', '{1 day}', '{a,bc}', DEFAULT, NULL, '{1.5}', '08:00:2b:01:02:03:04:05',
    '10:20:10,14', '<(0.1,0.2),3>', '{1,2,3}', '[(0,0),(0.1,1)]', '((0,0),(1,1),(0,1))',
    '{["2024-01-01 00:00:00+02",infinity)}');
    INSERT INTO every VALUES (2, 'abcdef00-0000-0000-0000-000000000002', NULL, NULL, 'NaN', 0,
    'NaN', '-Infinity', NULL, '', '', '', '', 'infinity', '-infinity', 'infinity', NULL, NULL,
    '-1 day', false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '', '', NULL, 'null', 'null',
    '{}', '{}', NULL, 'empty', NULL, '{}', NULL, NULL, NULL, NULL, NULL, '', NULL, 0, NULL, NULL,
    '', 'empty', NULL, NULL, NULL, DEFAULT, 7);
    INSERT INTO every VALUES (3, 'abcdef00-0000-0000-0000-000000000003', 0, 0, 1e30, -0.001,
    3.4e38, 5e-324, -0.01, 'a b c', 'ÄÖ', E'\u0001\u007f', '\xdeadbeef', '0001-01-01',
    '9999-12-31 23:59:59.999999Z', '5874897-12-31', '00:00', '00:00-15:59', '178000000 years',
    NULL, 'glad', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '""', '"\u00e9"',
    NULL, NULL, NULL, '(,)', '[-infinity,infinity]', NULL, 999);
    INSERT INTO every (id, uuid, m, f, c, bc) VALUES (4, 'abcdef00-0000-0000-0000-000000000004',
    '0044-03-15 00:00:00+00 BC', '-0', 'Infinity', 0);"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_back_byte_for_byte_whatever_the_settings_are() {
    let bench = Bench::new(TYPES).await;
    bench
        .run(
            "SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; \
             SET timezone = 'Asia/Kathmandu'; SET bytea_output = 'escape'; \
             SET extra_float_digits = -15; SET xmloption = document; SET xmlbinary = 'hex'",
        )
        .await;
    bench.run(VALUES).await;
    bench
        .run(
            "SET datestyle = 'German'; SET intervalstyle = 'sql_standard'; \
             UPDATE every SET bc = coalesce(bc, 0) + 1; UPDATE every SET bc = NULL WHERE id = 1; \
             RESET ALL",
        )
        .await;
    let class = Arc::clone(bench.catalog.class("every").unwrap());
    let decoded = new_images(&bench, &class.class).await;
    assert_eq!(decoded.len(), 9);
    let rows = [&decoded[8], &decoded[5], &decoded[6], &decoded[7]];
    comes_back_the_same(&bench, &class.class, &rows, "UPDATE copy SET bb = a * 2").await;
    let class = &class.class;
    let value = |row: usize, name: &str| decoded[row][class.position(name).unwrap()].clone();
    assert_eq!(value(0, "uuid"), Value::Text("abcdef00-0000-0000-0000-000000000001".into()));
    assert_eq!(value(0, "c"), Value::Text("1.00".into()));
    assert_eq!(value(0, "h"), Value::Text("ab".into()));
    assert_eq!(value(0, "m"), Value::Text("2024-02-28T19:32:03.4Z".into()));
    assert_eq!(value(3, "m"), Value::Text("0044-03-15 00:00:00+00 BC".into()));
    assert_eq!(value(0, "al"), Value::Int(7), "a domain of a domain is what it is made of");
    assert_eq!(value(0, "bc"), Value::Null, "not the default");
}

/// The values of every new image that was captured.
async fn new_images(bench: &Bench, class: &Class) -> Vec<Vec<Value>> {
    let columns: Vec<Option<&Column>> = class.columns.iter().map(Some).collect();
    let mut session = bench.read().await;
    let images =
        session.query("SELECT new_image FROM @sync_change ORDER BY seq", vec![]).await.unwrap();
    session.rollback().await.unwrap();
    images.iter().map(|image| image::decode(image.text(0).unwrap(), &columns).unwrap()).collect()
}

/// Writes rows back from what travels, and compares each with the one in its table, to the byte.
async fn comes_back_the_same(bench: &Bench, class: &Class, rows: &[&Vec<Value>], generated: &str) {
    let table = &class.table;
    let mut session = bench.store.begin().await.unwrap();
    session.batch(&format!("CREATE TEMP TABLE copy (LIKE {table})")).await.unwrap();
    let sent: Vec<&Column> = class.columns.iter().filter(|column| !column.generated).collect();
    let names: Vec<String> = sent.iter().map(|column| format!("\"{}\"", column.name)).collect();
    let binds: Vec<String> = sent
        .iter()
        .enumerate()
        .map(|(n, column)| bind_sql(Dialect::Postgres, &format!("${}", n + 1), column))
        .collect();
    let sql = format!("INSERT INTO copy ({}) SELECT {}", names.join(", "), binds.join(", "));
    for values in rows {
        let data = class.columns.iter().zip(*values).filter(|(column, _)| !column.generated);
        let data = data.map(|(column, value)| Datum::Text(image::text(value, column))).collect();
        session.execute(&sql, data).await.unwrap();
    }
    session.batch(generated).await.unwrap();
    let sql = format!(
        "SELECT old.id, a.field, a.was, b.came FROM {table} old JOIN copy new ON old.id = new.id, \
         LATERAL json_each_text(row_to_json(old)) a(field, was) \
         JOIN LATERAL json_each_text(row_to_json(new)) b(field, came) USING (field) \
         WHERE a.was IS DISTINCT FROM b.came"
    );
    assert_eq!(session.query(&sql, vec![]).await.unwrap(), []);
    let sql = format!(
        "SELECT count(*) FROM {table} old JOIN copy new ON old.id = new.id WHERE old *= new"
    );
    let same = session.query_one(&sql, vec![]).await.unwrap();
    assert_eq!(usize::try_from(same.int(0).unwrap()).unwrap(), rows.len());
}

/// A value of each type that people keep, as a literal of PostgreSQL.
fn literals() -> impl Strategy<Value = Vec<String>> {
    let text = || any::<String>().prop_map(|text| text.replace('\0', ""));
    let quoted = |text: String| format!("'{}'", text.replace('\'', "''"));
    let array = |list: Vec<Option<String>>| {
        let list = list.into_iter().map(|one| {
            one.map_or("NULL".to_owned(), |one| format!("'{}'", one.replace('\'', "''")))
        });
        format!("ARRAY[{}]::text[]", list.collect::<Vec<_>>().join(", "))
    };
    let date = (-4_700_i64..200_000, 0_u32..366).prop_map(|(year, day)| {
        format!("(date '2000-01-01' + make_interval(years => {}, days => {day}))", year - 2_000)
    });
    let numbers = (any::<i64>(), any::<f64>(), any::<f32>(), any::<i128>(), 0_u32..30);
    let texts = (
        text(),
        proptest::collection::vec(any::<u8>(), 0..40),
        proptest::collection::vec(proptest::option::of(text()), 0..4),
        text(),
    );
    let times = (date, any::<i32>(), any::<i32>(), any::<i64>());
    (numbers, texts, times).prop_map(
        move |((i, f, g, n, scale), (t, b, list, j), (d, m, days, us))| {
            let bytes: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
            vec![
                i.to_string(),
                format!("'{f:?}'::float8"),
                format!("'{g:?}'::float4"),
                format!("({n}::numeric / 10::numeric ^ {scale})"),
                quoted(t),
                format!("'\\x{bytes}'::bytea"),
                array(list),
                format!("to_json({}::text)", quoted(j)),
                format!("{d}::date"),
                format!("{d}::timestamp + make_interval(secs => {})", us % 86_400),
                format!("{d}::timestamptz"),
                format!(
                    "make_interval(months => {}, days => ({days})::int, secs => {})",
                    m / 4,
                    us / 1_000_000_000
                ),
            ]
        },
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn any_value_comes_back_byte_for_byte() {
    let bench = Bench::new(
        "CREATE TABLE anything (id serial PRIMARY KEY, uuid uuid UNIQUE DEFAULT gen_random_uuid(), \
         a bigint, b float8, c float4, d numeric, e text, f bytea, g text[], h json, i date, \
         j timestamp, k timestamptz, l interval)",
    )
    .await;
    let mut runner = TestRunner::deterministic();
    let strategy = literals();
    let rows: Vec<String> = (0..200)
        .map(|_| format!("({})", strategy.new_tree(&mut runner).unwrap().current().join(", ")))
        .collect();
    let sql = format!(
        "INSERT INTO anything (a, b, c, d, e, f, g, h, i, j, k, l) VALUES {}",
        rows.join(", ")
    );
    bench.run("SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; SET timezone = 'Asia/Kathmandu'").await;
    bench.run(&sql).await;
    let class = Arc::clone(bench.catalog.class("anything").unwrap());
    let decoded = new_images(&bench, &class.class).await;
    assert_eq!(decoded.len(), 200);
    let rows: Vec<&Vec<Value>> = decoded.iter().collect();
    comes_back_the_same(&bench, &class.class, &rows, "SELECT 1").await;
}
