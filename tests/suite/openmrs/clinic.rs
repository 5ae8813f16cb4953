//! The clinic's database: where the data lies, how it is loaded, and what its catalog does not say.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use crate::support::services::{self, TestDatabase};
use crate::support::sql::Sql;
use crate::support::tree::Engine;

/// Integer columns that refer to another table without a foreign key: of 2.9 all, of 2.5 those whose
/// table it has. (The two of `hl7_*` belong to classes that are not tracked.)
const UNDECLARED: &[(&str, &str, &str)] = &[
    ("cohort_member", "voided_by", "users"),
    ("concept_name_tag", "creator", "users"),
    ("concept_name_tag", "voided_by", "users"),
    ("concept_set", "concept_id", "concept"),
    ("obs", "value_group_id", "obs"),
    ("orders", "concept_id", "concept"),
    ("person_name", "changed_by", "users"),
    ("provider_role", "changed_by", "users"),
    ("provider_role", "creator", "users"),
    ("provider_role", "retired_by", "users"),
];

/// Formats of person attribute types whose attributes hold a row's id as text.
const FORMATS: &[(&str, &str)] =
    &[("org.openmrs.Concept", "concept"), ("org.openmrs.Location", "location")];

/// The folder with the data, when it is there.
pub(super) fn folder() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data/openmrs");
    if folder.join("scenarios.json").is_file() {
        return Some(folder);
    }
    println!("no data in {}: nothing is shown by this test", folder.display());
    None
}

pub(super) fn read(name: &str) -> String {
    let folder = folder().expect("the caller has looked");
    std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What `branchline.toml` has to say of this schema.
pub(super) fn settings(version: &str) -> String {
    let schema = read(&format!("schema-{version}-sqlite.sql"));
    let mut text = String::new();
    for (table, column, target) in UNDECLARED {
        if schema.contains(&format!("CREATE TABLE \"{table}\" (")) {
            text += &format!(
                "[[reference]]\ntable = \"{table}\"\ncolumn = \"{column}\"\ntarget = \"{target}\"\n"
            );
        }
    }
    for (format, target) in FORMATS {
        text += &format!(
            "[[reference]]\ntable = \"person_attribute\"\ncolumn = \"value\"\n\
             target = \"{target}\"\n\
             when = \"(SELECT format FROM person_attribute_type t \
             WHERE t.person_attribute_type_id = {{row}}.person_attribute_type_id) = '{format}'\"\n"
        );
    }
    // The set from which an attribute of this type takes its concepts.
    text += "[[reference]]\ntable = \"person_attribute_type\"\ncolumn = \"foreign_key\"\n\
             target = \"concept\"\nwhen = \"{row}.format = 'org.openmrs.Concept'\"\n";
    text
}

/// A database with schema 2.5 and the rows of `base`, whose next integer ids are `ahead` further on.
pub(super) fn database(engine: Engine, base: &str, ahead: u32) -> TestDatabase {
    let database = copy(engine, base);
    let sql = Sql::to(&database);
    if let Err(failure) = sql.run(&skip_ids(&sql, engine, ahead)) {
        panic!("cannot move the sequences of {}: {failure}", database.url());
    }
    sql.close();
    database
}

/// A copy of the loaded base: loading it takes seconds, copying does not. A base is kept as long
/// as some test uses a copy.
fn copy(engine: Engine, base: &str) -> TestDatabase {
    type Loaded = HashMap<(Engine, String), Weak<TestDatabase>>;
    static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);
    // A test that failed to load poisons nothing: the next one tries anew.
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let place = loaded.entry((engine, base.to_owned())).or_default();
    let template = place.upgrade().unwrap_or_else(|| Arc::new(load(engine, base)));
    *place = Arc::downgrade(&template);
    services::copy_database("openmrs", &template)
}

fn load(engine: Engine, base: &str) -> TestDatabase {
    let database = engine.database("openmrs");
    let sql = Sql::to(&database);
    let mut scripts = match engine {
        Engine::Postgres => vec![read("schema-2.5-postgres.sql")],
        Engine::Sqlite => vec![read("schema-2.5-sqlite.sql")],
    };
    scripts.push(read(&format!("{base}.sql")));
    match engine {
        Engine::Postgres => scripts.push(read("postgres-setval.sql")),
        // The file alone is what is copied: it must hold everything.
        Engine::Sqlite => scripts.push("PRAGMA wal_checkpoint(TRUNCATE)".to_owned()),
    }
    for script in scripts {
        let begin: String = script.chars().take(60).collect();
        sql.run(&script)
            .unwrap_or_else(|failure| panic!("{base} on {engine:?}: {begin}…: {failure}"));
    }
    sql.close();
    database
}

/// Integer ids must not match by luck.
fn skip_ids(sql: &Sql, engine: Engine, ahead: u32) -> String {
    if engine == Engine::Sqlite {
        // Tables that have had no row are not listed yet.
        return format!(
            "INSERT INTO sqlite_sequence (name, seq) \
             SELECT name, 0 FROM sqlite_master WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%' \
             AND name NOT IN (SELECT name FROM sqlite_sequence); \
             UPDATE sqlite_sequence SET seq = seq + {ahead}"
        );
    }
    let sequences = sql
        .query("SELECT quote_ident(relname) FROM pg_class WHERE relkind = 'S' ORDER BY 1")
        .unwrap();
    let skip = |row: &Vec<serde_json::Value>| {
        let name = row[0].as_str().unwrap();
        format!("SELECT setval('{name}', (SELECT last_value FROM {name}) + {ahead});")
    };
    sequences.iter().map(skip).collect()
}
