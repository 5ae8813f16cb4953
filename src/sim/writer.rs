//! What programs of the host do: transactions of a few statements on the clinic's tables.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::clinic::{CLASSES, RowKey, Tables};
use crate::store::session::Datum;

/// A statement with its binds.
pub(super) type Statement = (&'static str, Vec<Datum>);

/// Whether rows refer to themselves in a required column: more than the applier can do yet.
const REQUIRED_LOOPS: bool = false;

const PERSON: usize = 0;
const VISIT: usize = 1;
const OBS: usize = 2;
const NODE: usize = 3;
const ROLE: usize = 4;
const PERSON_ROLE: usize = 5;

/// Every key that any server has ever used, and tokens that nobody has used yet.
#[derive(Default)]
pub(super) struct Names {
    pub(super) keys: BTreeSet<RowKey>,
    tokens: u64,
}

/// A writer on one server, who sees its tables as they are.
pub(super) struct Writer<'a> {
    pub(super) server: usize,
    pub(super) rng: &'a mut StdRng,
    pub(super) names: &'a mut Names,
    pub(super) tables: &'a Tables,
    /// Whether unique values may be given that another server may give, too.
    pub(super) clashes: bool,
}

impl Writer<'_> {
    /// The statements of a transaction. The database may refuse one: then nothing of it happens.
    pub(super) fn transaction(&mut self) -> Vec<Statement> {
        let count = [1, 1, 1, 2, 2, 3, 4].choose(self.rng).copied().unwrap_or(1);
        let mut statements = Vec::new();
        for _ in 0..count {
            self.operation(&mut statements);
        }
        statements
    }

    fn operation(&mut self, to: &mut Vec<Statement>) {
        match self.rng.gen_range(0..100) {
            0..=24 => self.insert(to),
            25..=59 => self.update(to),
            60..=66 => self.codes(to),
            67..=76 => self.refer(to),
            77..=87 => self.delete(to),
            88..=92 => self.again(to),
            93..=96 => self.replace(to),
            _ => self.rekey(to),
        }
    }

    fn token(&mut self) -> Datum {
        self.names.tokens += 1;
        format!("t{}-{}", self.server, self.names.tokens).into()
    }

    fn new_key(&mut self, letter: char) -> String {
        self.names.tokens += 1;
        format!("{letter}{}-{}", self.server, self.names.tokens)
    }

    fn some(&mut self, class: usize) -> Option<String> {
        let keys: Vec<&String> =
            self.tables.keys().filter(|(of, _)| *of == class).map(|(_, key)| key).collect();
        keys.choose(self.rng).map(|key| (*key).clone())
    }

    /// A key that some server has used and that is not in the table here.
    fn gone(&mut self, class: usize) -> Option<String> {
        let gone: Vec<&RowKey> = self
            .names
            .keys
            .iter()
            .filter(|row| row.0 == class && !self.tables.contains_key(*row))
            .collect();
        gone.choose(self.rng).map(|row| row.1.clone())
    }

    fn insert(&mut self, to: &mut Vec<Statement>) {
        match self.rng.gen_range(0..10) {
            0..=2 => {
                let key = self.new_key('p');
                self.insert_person(key, to);
            }
            3..=5 => {
                let key = self.new_key('v');
                self.insert_visit(key, to);
            }
            6..=7 => {
                let key = self.new_key('o');
                self.insert_obs(key, to);
            }
            8 if self.rng.gen_bool(0.5) => {
                let key = self.new_key('n');
                self.insert_node(key, to);
            }
            8 => {
                let name = format!("r{}", self.rng.gen_range(0..6));
                self.insert_role(name, to);
            }
            _ => {
                let (Some(person), Some(role)) = (self.some(PERSON), self.some(ROLE)) else {
                    return;
                };
                to.push((
                    "INSERT INTO person_role (person_id, role, since) \
                     VALUES ((SELECT id FROM person WHERE uuid = $1), $2, $3)",
                    vec![person.into(), role.into(), self.token()],
                ));
            }
        }
    }

    fn insert_person(&mut self, key: String, to: &mut Vec<Statement>) {
        let code = if self.rng.gen_bool(0.4) { self.free_code() } else { None };
        let spouse = if self.rng.gen_bool(0.3) { self.some(PERSON) } else { None };
        to.push((
            "INSERT INTO person (uuid, name, phone, code, spouse_id) \
             VALUES ($1, $2, $3, $4, (SELECT id FROM person WHERE uuid = $5))",
            vec![key.into(), self.token(), self.token(), code.into(), spouse.into()],
        ));
    }

    fn insert_visit(&mut self, key: String, to: &mut Vec<Statement>) {
        let Some(person) = self.some(PERSON) else { return };
        to.push((
            "INSERT INTO visit (uuid, note, place, person_id) \
             VALUES ($1, $2, $3, (SELECT id FROM person WHERE uuid = $4))",
            vec![key.into(), self.token(), self.token(), person.into()],
        ));
    }

    fn insert_obs(&mut self, key: String, to: &mut Vec<Statement>) {
        let Some(visit) = self.some(VISIT) else { return };
        let parent = if self.rng.gen_bool(0.4) { self.some(OBS) } else { None };
        to.push((
            "INSERT INTO obs (uuid, value, unit, visit_id, parent_id) VALUES ($1, $2, $3, \
             (SELECT id FROM visit WHERE uuid = $4), (SELECT id FROM obs WHERE uuid = $5))",
            vec![key.into(), self.token(), self.token(), visit.into(), parent.into()],
        ));
    }

    fn insert_node(&mut self, key: String, to: &mut Vec<Statement>) {
        if REQUIRED_LOOPS && self.rng.gen_bool(0.2) {
            to.push((
                "INSERT INTO node (id, uuid, label, owner_id) SELECT n, $1, $2, n \
                 FROM (SELECT max(id) + 1 AS n FROM node)",
                vec![key.into(), self.token()],
            ));
            return;
        }
        let Some(owner) = self.some(NODE) else { return };
        to.push((
            "INSERT INTO node (uuid, label, owner_id) \
             VALUES ($1, $2, (SELECT id FROM node WHERE uuid = $3))",
            vec![key.into(), self.token(), owner.into()],
        ));
    }

    fn insert_role(&mut self, name: String, to: &mut Vec<Statement>) {
        to.push((
            "INSERT INTO role (name, note, rank) VALUES ($1, $2, $3)",
            vec![name.into(), self.token(), self.token()],
        ));
    }

    /// A value for the unique column that no row here has.
    fn free_code(&mut self) -> Option<String> {
        if !self.clashes && self.server != 0 {
            return None;
        }
        let taken: BTreeSet<&String> = self
            .tables
            .iter()
            .filter(|((class, _), _)| *class == PERSON)
            .filter_map(|(_, values)| values[2].as_ref())
            .collect();
        let free: Vec<String> =
            (0..8).map(|n| format!("c{n}")).filter(|code| !taken.contains(code)).collect();
        free.choose(self.rng).cloned()
    }

    fn update(&mut self, to: &mut Vec<Statement>) {
        let class = [PERSON, PERSON, VISIT, VISIT, OBS, NODE, ROLE, PERSON_ROLE];
        let class = class.choose(self.rng).copied().unwrap_or(PERSON);
        let Some(key) = self.some(class) else { return };
        let one = self.token();
        let statement = match (class, self.rng.gen_range(0..3)) {
            (PERSON, 0) => "UPDATE person SET name = $2 WHERE uuid = $1",
            (PERSON, 1) => "UPDATE person SET phone = $2 WHERE uuid = $1",
            (PERSON, _) => "UPDATE person SET name = $2, phone = $2 WHERE uuid = $1",
            (VISIT, 0) => "UPDATE visit SET note = $2 WHERE uuid = $1",
            (VISIT, 1) => "UPDATE visit SET place = $2 WHERE uuid = $1",
            (VISIT, _) => "UPDATE visit SET place = NULL, note = $2 WHERE uuid = $1",
            (OBS, 0) => "UPDATE obs SET value = $2 WHERE uuid = $1",
            (OBS, _) => "UPDATE obs SET value = $2, unit = $2 WHERE uuid = $1",
            (NODE, _) => "UPDATE node SET label = $2 WHERE uuid = $1",
            (ROLE, 0) => "UPDATE role SET note = $2 WHERE name = $1",
            (ROLE, _) => "UPDATE role SET rank = $2 WHERE name = $1",
            _ => {
                "UPDATE person_role SET since = $2 WHERE role = json_extract($1, '$[1]') \
                 AND person_id = (SELECT id FROM person WHERE uuid = json_extract($1, '$[0]'))"
            }
        };
        to.push((statement, vec![key.into(), one]));
    }

    /// Gives, takes and swaps unique values.
    fn codes(&mut self, to: &mut Vec<Statement>) {
        if !self.clashes && self.server != 0 {
            return;
        }
        let Some(one) = self.some(PERSON) else { return };
        match self.rng.gen_range(0..4) {
            0 => to.push(("UPDATE person SET code = NULL WHERE uuid = $1", vec![one.into()])),
            1 | 2 => {
                let Some(code) = self.free_code() else { return };
                to.push((
                    "UPDATE person SET code = $2 WHERE uuid = $1",
                    vec![one.into(), code.into()],
                ));
            }
            _ => {
                let Some(other) = self.some(PERSON).filter(|other| *other != one) else { return };
                let code = |key: &String| {
                    self.tables.get(&(PERSON, key.clone())).and_then(|values| values[2].clone())
                };
                let (ones, others) = (code(&one), code(&other));
                let set = "UPDATE person SET code = $2 WHERE uuid = $1";
                to.push((set, vec![one.clone().into(), Datum::Text(None)]));
                to.push((set, vec![other.into(), ones.into()]));
                to.push((set, vec![one.into(), others.into()]));
            }
        }
    }

    /// Moves references.
    fn refer(&mut self, to: &mut Vec<Statement>) {
        let (class, target, sql) = match self.rng.gen_range(0..6) {
            0 | 1 => (
                VISIT,
                self.some(PERSON),
                "UPDATE visit SET person_id = (SELECT id FROM person WHERE uuid = $2) WHERE uuid = $1",
            ),
            2 => (
                OBS,
                self.some(VISIT),
                "UPDATE obs SET visit_id = (SELECT id FROM visit WHERE uuid = $2) WHERE uuid = $1",
            ),
            3 => (
                OBS,
                self.some(OBS),
                "UPDATE obs SET parent_id = (SELECT id FROM obs WHERE uuid = $2) WHERE uuid = $1",
            ),
            4 => (
                NODE,
                self.some(NODE),
                "UPDATE node SET owner_id = (SELECT id FROM node WHERE uuid = $2) WHERE uuid = $1",
            ),
            _ => {
                let spouse = if self.rng.gen_bool(0.3) { None } else { self.some(PERSON) };
                let sql = "UPDATE person SET spouse_id = (SELECT id FROM person WHERE uuid = $2) \
                           WHERE uuid = $1";
                let Some(key) = self.some(PERSON) else { return };
                to.push((sql, vec![key.into(), spouse.into()]));
                return;
            }
        };
        let (Some(key), Some(target)) = (self.some(class), target) else { return };
        to.push((sql, vec![key.into(), target.into()]));
    }

    fn delete(&mut self, to: &mut Vec<Statement>) {
        let class = [PERSON, VISIT, VISIT, OBS, OBS, NODE, ROLE, PERSON_ROLE];
        let class = class.choose(self.rng).copied().unwrap_or(OBS);
        let Some(key) = self.some(class) else { return };
        if class == PERSON && self.rng.gen_bool(0.7) {
            for sql in [
                "UPDATE person SET spouse_id = NULL \
                 WHERE spouse_id = (SELECT id FROM person WHERE uuid = $1)",
                "DELETE FROM person_role WHERE person_id = (SELECT id FROM person WHERE uuid = $1)",
                "DELETE FROM visit WHERE person_id = (SELECT id FROM person WHERE uuid = $1)",
            ] {
                to.push((sql, vec![key.clone().into()]));
            }
        }
        to.push((delete_of(class), vec![key.into()]));
    }

    /// A key comes back, with new values.
    fn again(&mut self, to: &mut Vec<Statement>) {
        let class = self.rng.gen_range(0..CLASSES.len());
        let Some(key) = self.gone(class) else { return };
        self.insert_key(class, key, to);
    }

    fn insert_key(&mut self, class: usize, key: String, to: &mut Vec<Statement>) {
        match class {
            PERSON => self.insert_person(key, to),
            VISIT => self.insert_visit(key, to),
            OBS => self.insert_obs(key, to),
            NODE => self.insert_node(key, to),
            ROLE => self.insert_role(key, to),
            _ => {
                to.push((
                    "INSERT INTO person_role (person_id, role, since) VALUES ((SELECT id FROM person \
                     WHERE uuid = json_extract($1, '$[0]')), json_extract($1, '$[1]'), $2)",
                    vec![key.into(), self.token()],
                ));
            }
        }
    }

    /// Deletes a row and inserts it again in one transaction.
    fn replace(&mut self, to: &mut Vec<Statement>) {
        let class = [VISIT, OBS, OBS, NODE, ROLE, PERSON_ROLE].choose(self.rng).copied();
        let class = class.unwrap_or(OBS);
        let Some(key) = self.some(class) else { return };
        to.push((delete_of(class), vec![key.clone().into()]));
        self.insert_key(class, key, to);
    }

    /// Gives a row another key.
    fn rekey(&mut self, to: &mut Vec<Statement>) {
        let (class, sql, letter) = match self.rng.gen_range(0..4) {
            0 => (PERSON, "UPDATE person SET uuid = $2 WHERE uuid = $1", 'p'),
            1 => (VISIT, "UPDATE visit SET uuid = $2 WHERE uuid = $1", 'v'),
            2 => (OBS, "UPDATE obs SET uuid = $2 WHERE uuid = $1", 'o'),
            _ => (ROLE, "UPDATE role SET name = $2 WHERE name = $1", 'r'),
        };
        let Some(key) = self.some(class) else { return };
        let new = self.new_key(letter);
        to.push((sql, vec![key.into(), new.into()]));
    }
}

fn delete_of(class: usize) -> &'static str {
    match class {
        PERSON => "DELETE FROM person WHERE uuid = $1",
        VISIT => "DELETE FROM visit WHERE uuid = $1",
        OBS => "DELETE FROM obs WHERE uuid = $1",
        NODE => "DELETE FROM node WHERE uuid = $1",
        ROLE => "DELETE FROM role WHERE name = $1",
        _ => {
            "DELETE FROM person_role WHERE role = json_extract($1, '$[1]') \
             AND person_id = (SELECT id FROM person WHERE uuid = json_extract($1, '$[0]'))"
        }
    }
}
