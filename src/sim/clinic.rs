//! The host of a simulated server: a small clinic with references of every kind, and the template
//! database that all servers of a process are copied from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::seams;
use crate::config::{ClassSettings, Config};
use crate::error::Result;
use crate::state::{Place, State};
use crate::store::session::Session;
use crate::store::{Limits, Store, books, track};

/// When simulated time begins, in milliseconds since 1970.
pub(super) const EPOCH: i64 = 1_704_067_200_000;

/// The tables, with rows that were there before tracking. Ids differ from keys, and soon from server
/// to server.
const SCHEMA: &str = "
CREATE TABLE person (id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, name TEXT, phone TEXT,
    code TEXT UNIQUE, spouse_id INTEGER REFERENCES person (id));
CREATE TABLE visit (id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, note TEXT, place TEXT,
    person_id INTEGER NOT NULL REFERENCES person (id));
CREATE TABLE obs (id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, value TEXT, unit TEXT,
    visit_id INTEGER NOT NULL REFERENCES visit (id) ON DELETE CASCADE,
    parent_id INTEGER REFERENCES obs (id) ON DELETE SET NULL);
CREATE TABLE node (id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, label TEXT,
    owner_id INTEGER NOT NULL REFERENCES node (id));
CREATE TABLE role (name TEXT PRIMARY KEY NOT NULL, note TEXT, rank TEXT);
CREATE TABLE person_role (person_id INTEGER NOT NULL REFERENCES person (id),
    role TEXT NOT NULL REFERENCES role (name), since TEXT, PRIMARY KEY (person_id, role));
INSERT INTO person (uuid, name, phone, code) VALUES ('p-0', 'old', 'old', 'c0'),
    ('p-1', 'old', 'old', 'c1'), ('p-2', 'old', 'old', NULL);
INSERT INTO visit (uuid, note, place, person_id) VALUES ('v-0', 'old', 'old', 1), ('v-1', 'old', NULL, 2);
INSERT INTO obs (uuid, value, unit, visit_id) VALUES ('o-0', 'old', 'old', 1), ('o-1', 'old', 'old', 2);
INSERT INTO node (id, uuid, label, owner_id) VALUES (1, 'n-0', 'old', 1);
INSERT INTO node (uuid, label, owner_id) VALUES ('n-1', 'old', 1);
INSERT INTO role (name, note, rank) VALUES ('r0', 'old', 'old'), ('r1', 'old', 'old');
INSERT INTO person_role (person_id, role, since) VALUES (1, 'r0', 'old');
";

/// A class of the clinic as it is read: the query yields the key first.
pub(super) struct ClassOf {
    pub(super) name: &'static str,
    pub(super) columns: &'static [&'static str],
    pub(super) sql: &'static str,
    /// Columns that refer to a class.
    pub(super) references: &'static [(usize, usize)],
}

/// Columns are read as they travel: a reference is the key of its row.
pub(super) const CLASSES: [ClassOf; 6] = [
    ClassOf {
        name: "person",
        columns: &["name", "phone", "code", "spouse_id"],
        sql: "SELECT p.uuid, p.name, p.phone, p.code, s.uuid FROM person p \
              LEFT JOIN person s ON s.id = p.spouse_id",
        references: &[(3, 0)],
    },
    ClassOf {
        name: "visit",
        columns: &["note", "place", "person_id"],
        sql: "SELECT v.uuid, v.note, v.place, p.uuid FROM visit v \
              LEFT JOIN person p ON p.id = v.person_id",
        references: &[(2, 0)],
    },
    ClassOf {
        name: "obs",
        columns: &["value", "unit", "visit_id", "parent_id"],
        sql: "SELECT o.uuid, o.value, o.unit, v.uuid, p.uuid FROM obs o \
              LEFT JOIN visit v ON v.id = o.visit_id LEFT JOIN obs p ON p.id = o.parent_id",
        references: &[(2, 1), (3, 2)],
    },
    ClassOf {
        name: "node",
        columns: &["label", "owner_id"],
        sql: "SELECT n.uuid, n.label, o.uuid FROM node n LEFT JOIN node o ON o.id = n.owner_id",
        references: &[(1, 3)],
    },
    ClassOf {
        name: "role",
        columns: &["note", "rank"],
        sql: "SELECT name, note, rank FROM role",
        references: &[],
    },
    ClassOf {
        name: "person_role",
        columns: &["since"],
        sql: "SELECT json_array(p.uuid, r.role), r.since FROM person_role r \
              LEFT JOIN person p ON p.id = r.person_id",
        references: &[],
    },
];

/// A row by its class (the place in [`CLASSES`]) and key.
pub(super) type RowKey = (usize, String);

/// All rows with the values of their columns.
pub(super) type Tables = BTreeMap<RowKey, Vec<Option<String>>>;

/// Reads all tables as they are in a transaction.
pub(super) async fn read(session: &mut Session) -> Result<Tables> {
    let mut tables = Tables::new();
    for (n, class) in CLASSES.iter().enumerate() {
        for row in session.query(class.sql, vec![]).await? {
            let values = (1..=class.columns.len())
                .map(|column| Ok(row.opt_text(column)?.map(str::to_owned)))
                .collect::<Result<_>>()?;
            tables.insert((n, row.text(0)?.to_owned()), values);
        }
    }
    Ok(tables)
}

/// Watches the sync tables from inside: what must never happen goes to `sim_violation`, what did
/// happen is counted in `sim_seen`. It costs the simulation no look at the tables after each step.
fn watch() -> String {
    let mut sql = "CREATE TABLE sim_violation (text TEXT); \
                   CREATE TABLE sim_seen (what TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID;"
        .to_owned();
    for (table, place) in [
        ("sync_record", Place::Record),
        ("sync_server_record", Place::ServerRecord),
        ("sync_import", Place::Import),
    ] {
        let allowed: Vec<String> = State::ALL
            .into_iter()
            .flat_map(|before| State::ALL.map(|after| (before, after)))
            .filter(|(before, after)| before == after || after.may_follow(*before, place))
            .map(|(before, after)| format!("('{before}', '{after}')"))
            .collect();
        sql.push_str(&format!(
            "CREATE TRIGGER sim_{table} BEFORE UPDATE OF state ON {table} \
             WHEN (OLD.state, NEW.state) NOT IN (VALUES {}) BEGIN \
             INSERT INTO sim_violation VALUES ('a line of {table} went from ' || OLD.state || ' to ' || NEW.state); \
             END;",
            allowed.join(", ")
        ));
    }
    for (name, event, table, when, what) in [
        ("held", "INSERT", "sync_held", "", "'held: ' || NEW.kind"),
        ("conflict", "INSERT", "sync_conflict", "", "'conflict: ' || NEW.kind"),
        (
            "again",
            "UPDATE OF state",
            "sync_import",
            "WHEN NEW.state = 'ALREADY_COMMITTED'",
            "'duplicate dropped'",
        ),
        (
            "resent",
            "UPDATE OF state",
            "sync_server_record",
            "WHEN NEW.state = 'SENT_AGAIN'",
            "'resent'",
        ),
        (
            "resent_up",
            "UPDATE OF state",
            "sync_record",
            "WHEN NEW.state = 'SENT_AGAIN'",
            "'resent'",
        ),
        ("passed", "INSERT", "sync_record", "WHEN NEW.source_server_id IS NOT NULL", "'passed on'"),
        ("tried", "UPDATE OF retry_count", "sync_held", "", "'held tried again in vain'"),
        ("released", "DELETE", "sync_held", "", "'held went in: ' || OLD.kind"),
    ] {
        sql.push_str(&format!(
            "CREATE TRIGGER sim_count_{name} AFTER {event} ON {table} {when} BEGIN \
             INSERT INTO sim_seen VALUES ({what}, 1) ON CONFLICT (what) DO UPDATE SET n = n + 1; END;"
        ));
    }
    sql.push_str(
        "CREATE TRIGGER sim_clock BEFORE UPDATE OF clock, next_number ON sync_self \
         WHEN NEW.clock < OLD.clock OR NEW.next_number < OLD.next_number BEGIN \
         INSERT INTO sim_violation VALUES ('the stamps or numbers of a server went back'); END;",
    );
    sql
}

/// A folder in memory where there is one.
pub(super) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

/// How classes merge in simulated trees.
pub(super) fn settings() -> Vec<ClassSettings> {
    Vec::new()
}

/// The configuration of a server with its database at `path`.
pub(super) fn config(path: &Path) -> Config {
    Config {
        database_url: Some(format!("sqlite:{}", path.display())),
        broker_url: "spool:simulated".to_owned(),
        zstd_level: 0,
        classes: settings(),
        ..Config::default()
    }
}

static TEMPLATE: Mutex<Option<Arc<(tempfile::TempDir, PathBuf)>>> = Mutex::new(None);

/// A database with the clinic, the sync tables and the triggers, made once for all.
pub(super) async fn template() -> Arc<(tempfile::TempDir, PathBuf)> {
    let known = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(known) = known {
        return known;
    }
    let folder = folder();
    let path = folder.path().join("template.db");
    make(&path).await.unwrap();
    let made = Arc::new((folder, path));
    *TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&made));
    made
}

async fn make(path: &Path) -> Result<()> {
    std::fs::write(path, b"").unwrap();
    seams::set_clock(Some(EPOCH - 86_400_000));
    let config = config(path);
    let store = Store::connect(config.database_url()?, Limits::default()).await?;
    let mut session = store.begin().await?;
    session.batch(SCHEMA).await?;
    session.commit().await?;
    books::identity::init(&store, "template", false, "simulation").await?;
    let mut session = store.begin().await?;
    let mut request = config.track_request();
    request.names = CLASSES.iter().map(|class| class.name.to_owned()).collect();
    let report = track::track(&mut session, request).await?;
    assert_eq!(report.refusals, vec![], "the clinic can be tracked");
    session.batch(&watch()).await?;
    session.commit().await?;
    drop(store);
    assert!(!path.with_extension("db-wal").exists(), "the template is one file");
    Ok(())
}
