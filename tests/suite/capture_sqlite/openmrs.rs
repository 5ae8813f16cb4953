//! A real clinic's database: every row of it is captured, image and references.

use std::path::PathBuf;

use branchline::store::sqlite::{changes, literals};

use super::bench::Bench;

/// The file, where the test data lies beside the project.
fn file(name: &str) -> Option<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let data =
        root.ancestors().map(|dir| dir.join("shared/data/openmrs")).find(|dir| dir.exists())?;
    Some(std::fs::read_to_string(data.join(name)).unwrap())
}

async fn number(bench: &Bench, sql: &str) -> i64 {
    let mut session = bench.store.read().await.unwrap();
    session.query_one(sql, vec![]).await.unwrap().int(0).unwrap()
}

/// `(schema, data, tables, rows)`.
const SETS: [(&str, &str, usize, usize); 3] = [
    ("schema-2.5-sqlite.sql", "base-2.5.sql", 113, 340),
    ("schema-2.9-sqlite.sql", "core-2.9.sql", 119, 546),
    ("schema-2.9-sqlite.sql", "standard-2.9.sql", 119, 462),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_a_clinic_is_captured_with_what_it_refers_to() {
    for (schema, data, tables, rows) in SETS {
        let (Some(schema), Some(script)) = (file(schema), file(data)) else { return };
        let bench = Bench::new(&schema).await;
        assert_eq!(bench.catalog.tracked.len(), tables, "{data}");
        bench.shell(&script);

        let mut session = bench.store.begin().await.unwrap();
        let changes = changes::read(&mut session, &bench.catalog, 10_000).await.unwrap().rows;
        session.commit().await.unwrap();
        let mut found = 0;
        let mut referring = 0;
        for tracked in bench.catalog.tracked.values() {
            let table = format!("\"{}\"", tracked.class.table);
            for slot in tracked.class.slots() {
                let column = &tracked.class.columns[slot.column].name;
                let reference = slot.reference;
                referring += number(
                    &bench,
                    &format!(
                        "SELECT count(*) FROM {table} a JOIN \"{}\" b ON b.\"{}\" = a.\"{column}\"",
                        reference.target, reference.target_column
                    ),
                )
                .await;
            }
            let mut session = bench.store.read().await.unwrap();
            let image = literals::image_sql(&tracked.class, "t");
            let sql = format!("SELECT {image} FROM {table} AS t");
            let mut lying: Vec<String> = Vec::new();
            for row in session.query(&sql, vec![]).await.unwrap() {
                lying.push(row.text(0).unwrap().to_owned());
            }
            let mut caught: Vec<String> = Vec::new();
            for row in changes.iter().filter(|row| row.int(1).unwrap() == i64::from(tracked.id)) {
                if let Some(old) = row.opt_text(5).unwrap() {
                    let place = caught.iter().position(|image| image == old).unwrap();
                    caught.remove(place);
                }
                caught.push(row.text(6).unwrap().to_owned());
            }
            // Versions of SQLite print a float with more digits or fewer.
            let values = |images: &[String]| {
                let decode = |image: &String| bench.decoded(image, &tracked.class.name);
                let mut rows: Vec<String> =
                    images.iter().map(|image| format!("{:?}", decode(image))).collect();
                rows.sort();
                rows
            };
            assert_eq!(values(&caught), values(&lying), "{}", tracked.class.name);
            found += caught.len();
        }
        assert_eq!(found, rows, "{data}");

        let keys: usize = bench
            .references()
            .await
            .iter()
            .flat_map(|line| line.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>())
            .filter(|key| !key.is_empty() && key != "-")
            .count();
        assert!(keys as i64 >= referring && referring > 0, "{keys} of {referring} references");
    }
}
