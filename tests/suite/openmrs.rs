//! A real clinic's database, and what its people do to it: from a child to the parent and on to a
//! second child, on three mixes of databases and brokers. Without the data nothing is shown.

mod clinic;

use serde::Deserialize;
use serde_json::Value;

use crate::support::sql::Row;
use crate::support::tree::{Engine, MIXED_AMQP, Mix, POSTGRES_AMQP, SQLITE_SPOOL, Tree};

#[derive(Deserialize)]
struct Scenario {
    id: String,
    what: String,
    child_base: String,
    parent_base: String,
    setup: Vec<String>,
    transactions: Vec<Vec<String>>,
    expect: Vec<Expectation>,
}

#[derive(Deserialize)]
struct Expectation {
    sql: String,
    rows: Vec<Row>,
}

fn scenarios() -> Vec<Scenario> {
    serde_json::from_str(&clinic::read("scenarios.json")).unwrap()
}

/// Runs the scenario of this name; with no data, nothing.
fn run(mix: Mix, id: &str) {
    if clinic::folder().is_none() {
        return;
    }
    let scenario = scenarios().into_iter().find(|scenario| scenario.id == id);
    scenario.unwrap_or_else(|| panic!("there is no scenario `{id}`")).run(mix);
}

impl Scenario {
    fn run(&self, mix: Mix) {
        println!("{} on {mix:?}: {}", self.id, self.what);
        let tree = self.tree(mix);
        for statement in &self.setup {
            set_up(&tree, statement);
        }
        for transaction in &self.transactions {
            tree.child.transaction(transaction);
        }
        tree.exchange();
        for server in [&tree.parent, &tree.child2] {
            for expectation in &self.expect {
                let rows = server.query(&expectation.sql);
                assert!(
                    equal(&rows, &expectation.rows),
                    "{} on {mix:?}: `{}` has {rows:?}, not {:?}, for {}",
                    self.id,
                    server.nickname(),
                    expectation.rows,
                    expectation.sql
                );
            }
        }
        self.check_books(&tree);
    }

    fn tree(&self, mix: Mix) -> Tree {
        let mut tree = Tree::unconnected(mix, &clinic::settings("2.5"), |nickname, engine| {
            let (base, ahead) = match nickname {
                "parent" => (&self.parent_base, 1_000),
                "child" => (&self.child_base, 0),
                _ => (&self.child_base, 2_000),
            };
            clinic::database(engine, base, ahead)
        });
        tree.connect(&["--all"]);
        tree
    }

    /// Nothing is left to do anywhere, and each transaction was one record.
    fn check_books(&self, tree: &Tree) {
        for server in tree.servers() {
            assert!(tree.is_settled(server), "{}: {}", server.nickname(), server.status_json());
            assert_eq!(server.count("SELECT count(*) FROM @sync_held"), 0, "{}", self.id);
        }
        let made = tree.child.count("SELECT count(*) FROM @sync_record");
        if tree.child.is_sqlite() {
            // Without marks, neighbouring transactions share a record.
            assert!(made <= self.transactions.len() as i64, "{}: {made} records", self.id);
        } else if self.setup.is_empty() {
            assert_eq!(made, self.transactions.len() as i64, "{}", self.id);
        }
    }
}

/// The preparations that scenarios know, in their words.
fn set_up(tree: &Tree, statement: &str) {
    if statement == "default class/table exclusions in force" {
        return;
    }
    let rule = statement.strip_prefix("child: send_to=0 for ");
    if let Some(class) = rule.and_then(|rule| rule.strip_suffix(" towards the parent")) {
        tree.child.done(&["class", "exclude", class, "--server", tree.parent.nickname(), "--send"]);
        return;
    }
    panic!("the tests do not know this preparation: {statement}");
}

/// Equal but for the kind of number: PostgreSQL has decimals where SQLite has integers.
fn equal(rows: &[Row], expected: &[Row]) -> bool {
    let same = |(a, b): (&Value, &Value)| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    };
    rows.len() == expected.len()
        && rows.iter().zip(expected).all(|(row, expected)| {
            row.len() == expected.len() && row.iter().zip(expected).all(same)
        })
}

macro_rules! scenarios {
    ($($id:ident)*) => {
        const NAMED: &[&str] = &[$(stringify!($id)),*];
        scenarios!(@mix postgres_amqp POSTGRES_AMQP $($id)*);
        scenarios!(@mix sqlite_spool SQLITE_SPOOL $($id)*);
        scenarios!(@mix mixed_amqp MIXED_AMQP $($id)*);
    };
    (@mix $module:ident $mix:ident $($id:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $id() {
                run($mix, &stringify!($id).replace('_', "-"));
            })*
        }
    };
}

scenarios! {
    patient_create patient_edit patients_merge obs_group program_enrol_then_state drug_order
    concept_numeric concept_name_tag user_create_with_roles role_privilege_create
    user_property_set_update_remove patient_delete person_attribute_fk_in_text set_to_null
    location_tag cohort_different_integer_ids excluded_table per_server_filter
}

/// The file is a sample of a larger set: what else it comes to hold is run too.
#[test]
fn scenarios_that_are_not_named_here_hold_too() {
    if clinic::folder().is_none() {
        return;
    }
    for scenario in scenarios() {
        if !NAMED.contains(&scenario.id.replace('-', "_").as_str()) {
            for mix in [POSTGRES_AMQP, SQLITE_SPOOL, MIXED_AMQP] {
                scenario.run(mix);
            }
        }
    }
}

#[test]
fn both_databases_hold_the_same_clinic_and_give_ids_of_their_own() {
    if clinic::folder().is_none() {
        return;
    }
    for engine in [Engine::Postgres, Engine::Sqlite] {
        for base in ["base-2.5", "base-2.5-other-patient-ids", "base-2.5-other-privilege-uuids"] {
            let database = clinic::database(engine, base, 1_000);
            let sql = crate::support::sql::Sql::to(&database);
            let count = |sql_text: &str| sql.query(sql_text).unwrap()[0][0].as_i64().unwrap();
            assert!(count("SELECT count(*) FROM patient") >= 4, "{base} on {engine:?}");
            let most = count("SELECT max(person_id) FROM person");
            sql.run(
                "INSERT INTO person (gender, birthdate_estimated, dead, deathdate_estimated, \
                 voided, uuid, creator, date_created) VALUES ('F', FALSE, FALSE, FALSE, FALSE, \
                 'a-new-person', 1, '2024-01-02 03:04:05')",
            )
            .unwrap();
            let new = count("SELECT person_id FROM person WHERE uuid = 'a-new-person'");
            assert!(new > most + 900, "{new} after {most}, {base} on {engine:?}");
        }
    }
}
