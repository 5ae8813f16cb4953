//! The people of the demo: what they write into their server's database, one transaction at a time,
//! in plain SQL that knows nothing of Branchline.

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use crate::error::Result;
use crate::store::{Datum, Dialect, Session, Store, books, time as clock};

const GIVEN: [&str; 16] = [
    "Amina", "Björn", "Chidi", "Dalia", "Efua", "Farid", "Grace", "Hana", "Imre", "Joy", "Kofi",
    "Lea", "Moses", "Ngozi", "Omar", "Zoë",
];
const FAMILY: [&str; 12] = [
    "Abara", "Banda", "Cruz", "Diallo", "Eze", "Fofana", "García", "Haddad", "Ito", "Juma",
    "Kamau", "O'Neil",
];
const CONCEPTS: [&str; 10] = [
    "Vital signs",
    "Weight (kg)",
    "Temperature (°C)",
    "Pulse",
    "Systolic pressure",
    "Haemoglobin",
    "Complaint",
    "Penicillin",
    "Peanut",
    "Latex",
];
const DRUGS: [&str; 5] = ["Amoxicillin", "Artemether", "Ibuprofen", "Metformin", "Zidovudine"];
const ROLES: [&str; 4] = ["Nurse", "Clinician", "Pharmacist", "Data manager"];

/// How many users the reference data has.
pub(super) const USERS: i64 = 6;

/// What a server's people mostly do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Keeps the reference data and the users.
    Ministry,
    /// Corrects what clinics wrote.
    District,
    /// Sees patients.
    Clinic,
}

/// The people of one server.
#[derive(Clone)]
pub(super) struct Staff {
    pub(super) store: Store,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) seed: u64,
}

impl Staff {
    /// One transaction, decided by the seed, the server and `step`; what it finds to work on depends
    /// on what has arrived.
    pub(super) async fn step(&self, step: usize) -> Result<()> {
        let mut attempts = books::Attempts::default();
        loop {
            match self.transact(step).await {
                Err(error) if attempts.again(&error).await => {}
                other => return other,
            }
        }
    }

    async fn transact(&self, step: usize) -> Result<()> {
        let mut session = self.store.begin().await?;
        let mut rng = self.rng(step);
        match self.kind {
            Kind::Ministry => ministry(&mut session, &mut rng, step).await?,
            Kind::District => district(&mut session, &mut rng).await?,
            Kind::Clinic => self.clinic(&mut session, &mut rng, step).await?,
        }
        end_of_transaction(&mut session).await?;
        session.commit().await
    }

    /// The time to the next transaction.
    pub(super) fn pause(&self, step: usize) -> std::time::Duration {
        std::time::Duration::from_millis(self.rng(step).gen_range(20..90))
    }

    fn rng(&self, step: usize) -> StdRng {
        let name = self.name.bytes().fold(0_u64, |hash, byte| hash * 31 + u64::from(byte));
        StdRng::seed_from_u64(self.seed ^ name.rotate_left(20) ^ (step as u64).rotate_left(40))
    }

    async fn clinic(&self, session: &mut Session, rng: &mut StdRng, step: usize) -> Result<()> {
        let identifier = format!("{}-{:04}", self.name.to_uppercase(), step + 1);
        match rng.gen_range(0..100) {
            _ if step == 0 => register(session, rng, &identifier).await,
            0..35 => register(session, rng, &identifier).await,
            35..70 => visit(session, rng).await,
            70..80 => allergy(session, rng).await,
            80..90 => void(session, rng).await,
            _ => phone(session, rng).await,
        }
    }
}

/// On SQLite an application that embeds Branchline's connection marks where a transaction ends, and
/// so does this one: then one transaction is one record.
async fn end_of_transaction(session: &mut Session) -> Result<()> {
    if session.dialect() == Dialect::Sqlite {
        session
            .execute("INSERT INTO @sync_change (class_id, op) VALUES (0, 4)", Vec::new())
            .await?;
    }
    Ok(())
}

/// What the ministry writes before anybody works: roles, concepts, drugs and users.
pub(super) async fn reference_data(store: &Store, seed: u64) -> Result<()> {
    books::write(store, async |session| {
        let mut rng = StdRng::seed_from_u64(seed);
        for role in ROLES {
            let binds = vec![role.into(), format!("What a {} may do", role.to_lowercase()).into()];
            session.execute("INSERT INTO role (role, description) VALUES ($1, $2)", binds).await?;
        }
        for name in CONCEPTS {
            concept(session, &mut rng, name).await?;
        }
        for name in DRUGS {
            drug(session, &mut rng, name).await?;
        }
        end_of_transaction(session).await
    })
    .await?;
    for number in 0..USERS {
        books::write(store, async |session| {
            let mut rng = StdRng::seed_from_u64(seed ^ (number as u64 + 1).rotate_left(17));
            user(session, &mut rng, &format!("user{number}")).await?;
            end_of_transaction(session).await
        })
        .await?;
    }
    Ok(())
}

async fn ministry(session: &mut Session, rng: &mut StdRng, step: usize) -> Result<()> {
    match rng.gen_range(0..100) {
        0..25 => user(session, rng, &format!("officer{step}")).await,
        25..50 => drug(session, rng, &format!("Drug {step}")).await,
        50..75 => grant(session, rng).await,
        _ => phone(session, rng).await,
    }
}

async fn district(session: &mut Session, rng: &mut StdRng) -> Result<()> {
    match rng.gen_range(0..100) {
        0..40 => family_name(session, rng).await,
        40..70 => stop_order(session, rng).await,
        _ => phone(session, rng).await,
    }
}

fn uuid(rng: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.r#gen()).into_uuid()
}

fn choose<'a>(rng: &mut StdRng, list: &[&'a str]) -> &'a str {
    list.choose(rng).copied().unwrap_or_default()
}

/// The local id of some row: the first whose uuid is at or after a random one.
async fn some(session: &mut Session, rng: &mut StdRng, from: &str) -> Result<Option<i64>> {
    let sql = format!("SELECT t.id FROM ({from}) t WHERE t.uuid >= $1 ORDER BY t.uuid LIMIT 1");
    for start in [uuid(rng), Uuid::nil()] {
        if let Some(row) = session.query_opt(&sql, vec![start.into()]).await? {
            return row.opt_int(0);
        }
    }
    Ok(None)
}

const PATIENTS: &str =
    "SELECT p.person_id AS id, p.uuid FROM person p JOIN patient t ON t.person_id = p.person_id";
const OF_USERS: &str = "SELECT user_id AS id, uuid FROM users";
const OF_CONCEPTS: &str = "SELECT concept_id AS id, uuid FROM concept";
const OF_DRUGS: &str = "SELECT drug_id AS id, uuid FROM drug";
const OPEN_OBS: &str = "SELECT obs_id AS id, uuid FROM obs WHERE NOT voided";
const OPEN_ORDERS: &str = "SELECT order_id AS id, uuid FROM drug_order WHERE NOT stopped";

async fn concept(session: &mut Session, rng: &mut StdRng, name: &str) -> Result<i64> {
    let row = session
        .query_one(
            "INSERT INTO concept (uuid, name) VALUES ($1, $2) RETURNING concept_id",
            vec![uuid(rng).into(), name.into()],
        )
        .await?;
    row.int(0)
}

async fn drug(session: &mut Session, rng: &mut StdRng, name: &str) -> Result<()> {
    let concept = concept(session, rng, name).await?;
    session
        .execute(
            "INSERT INTO drug (uuid, name, concept_id) VALUES ($1, $2, $3)",
            vec![uuid(rng).into(), name.into(), concept.into()],
        )
        .await?;
    Ok(())
}

async fn person(session: &mut Session, rng: &mut StdRng) -> Result<i64> {
    let phone = rng.gen_bool(0.6).then(|| format!("+{}", rng.gen_range(1_000_000..9_999_999)));
    let row = session
        .query_one(
            "INSERT INTO person (uuid, given_name, family_name, birth_year, phone) \
             VALUES ($1, $2, $3, $4, $5) RETURNING person_id",
            vec![
                uuid(rng).into(),
                choose(rng, &GIVEN).into(),
                choose(rng, &FAMILY).into(),
                rng.gen_range(1930_i64..2025).into(),
                phone.into(),
            ],
        )
        .await?;
    row.int(0)
}

async fn user(session: &mut Session, rng: &mut StdRng, name: &str) -> Result<()> {
    let person = person(session, rng).await?;
    let row = session
        .query_one(
            "INSERT INTO users (uuid, username, person_id) VALUES ($1, $2, $3) RETURNING user_id",
            vec![uuid(rng).into(), name.into(), person.into()],
        )
        .await?;
    let binds = vec![row.int(0)?.into(), choose(rng, &ROLES).into()];
    session.execute("INSERT INTO user_role (user_id, role) VALUES ($1, $2)", binds).await?;
    Ok(())
}

/// Gives a user a role, or takes it away again.
async fn grant(session: &mut Session, rng: &mut StdRng) -> Result<()> {
    let Some(user) = some(session, rng, OF_USERS).await? else { return Ok(()) };
    let binds: Vec<Datum> = vec![user.into(), choose(rng, &ROLES).into()];
    let taken = session
        .execute("DELETE FROM user_role WHERE user_id = $1 AND role = $2", binds.clone())
        .await?;
    if taken == 0 {
        session.execute("INSERT INTO user_role (user_id, role) VALUES ($1, $2)", binds).await?;
    }
    Ok(())
}

async fn register(session: &mut Session, rng: &mut StdRng, identifier: &str) -> Result<()> {
    let person = person(session, rng).await?;
    session
        .execute(
            "INSERT INTO patient (person_id, identifier) VALUES ($1, $2)",
            vec![person.into(), identifier.into()],
        )
        .await?;
    Ok(())
}

/// An encounter with a group of observations, and often a prescription: one transaction.
async fn visit(session: &mut Session, rng: &mut StdRng) -> Result<()> {
    let patient = some(session, rng, PATIENTS).await?;
    let user = some(session, rng, OF_USERS).await?;
    let (Some(patient), Some(user)) = (patient, user) else { return Ok(()) };
    let kind = choose(rng, &["first visit", "follow-up", "emergency"]);
    let row = session
        .query_one(
            "INSERT INTO encounter (uuid, patient_id, user_id, kind, held_at) \
             VALUES ($1, $2, $3, $4, $5) RETURNING encounter_id",
            vec![
                uuid(rng).into(),
                patient.into(),
                user.into(),
                kind.into(),
                Datum::time(clock::now()),
            ],
        )
        .await?;
    let encounter = row.int(0)?;
    let group = observe(session, rng, encounter, None).await?;
    for _ in 0..rng.gen_range(2..6) {
        observe(session, rng, encounter, group).await?;
    }
    if rng.gen_bool(0.5) {
        prescribe(session, rng, encounter).await?;
    }
    Ok(())
}

async fn observe(
    session: &mut Session,
    rng: &mut StdRng,
    encounter: i64,
    group: Option<i64>,
) -> Result<Option<i64>> {
    let Some(concept) = some(session, rng, OF_CONCEPTS).await? else { return Ok(None) };
    let value = format!("{}.{:02}", rng.gen_range(1..200), rng.gen_range(0..100));
    let comment = rng.gen_bool(0.2).then(|| "checked twice".to_owned());
    let row = session
        .query_one(
            "INSERT INTO obs (uuid, encounter_id, concept_id, obs_group_id, value, comment) \
             VALUES ($1, $2, $3, $4, CAST($5 AS numeric(8, 2)), $6) RETURNING obs_id",
            vec![
                uuid(rng).into(),
                encounter.into(),
                concept.into(),
                group.into(),
                group.map(|_| value).into(),
                comment.into(),
            ],
        )
        .await?;
    row.opt_int(0)
}

async fn prescribe(session: &mut Session, rng: &mut StdRng, encounter: i64) -> Result<()> {
    let Some(drug) = some(session, rng, OF_DRUGS).await? else { return Ok(()) };
    let dose = format!("{}.5", rng.gen_range(1..500));
    session
        .execute(
            "INSERT INTO drug_order (uuid, encounter_id, drug_id, dose, unit) \
             VALUES ($1, $2, $3, CAST($4 AS numeric(8, 2)), $5)",
            vec![uuid(rng).into(), encounter.into(), drug.into(), dose.into(), "mg".into()],
        )
        .await?;
    Ok(())
}

/// Notes an allergy, or takes it back where it is noted already.
async fn allergy(session: &mut Session, rng: &mut StdRng) -> Result<()> {
    let patient = some(session, rng, PATIENTS).await?;
    let concept = some(session, rng, OF_CONCEPTS).await?;
    let (Some(patient), Some(concept)) = (patient, concept) else { return Ok(()) };
    let key: Vec<Datum> = vec![patient.into(), concept.into()];
    let taken = session
        .execute("DELETE FROM allergy WHERE patient_id = $1 AND concept_id = $2", key.clone())
        .await?;
    if taken == 0 {
        let mut binds = key;
        binds.push(choose(rng, &["mild", "severe"]).into());
        session
            .execute(
                "INSERT INTO allergy (patient_id, concept_id, severity) VALUES ($1, $2, $3)",
                binds,
            )
            .await?;
    }
    Ok(())
}

async fn void(session: &mut Session, rng: &mut StdRng) -> Result<()> {
    let Some(obs) = some(session, rng, OPEN_OBS).await? else { return Ok(()) };
    let sql = "UPDATE obs SET voided = true, comment = 'entered in error' WHERE obs_id = $1";
    session.execute(sql, vec![obs.into()]).await?;
    Ok(())
}

async fn stop_order(session: &mut Session, rng: &mut StdRng) -> Result<()> {
    let Some(order) = some(session, rng, OPEN_ORDERS).await? else { return Ok(()) };
    let sql = "UPDATE drug_order SET stopped = true WHERE order_id = $1";
    session.execute(sql, vec![order.into()]).await?;
    Ok(())
}

async fn phone(session: &mut Session, rng: &mut StdRng) -> Result<()> {
    let Some(person) = some(session, rng, PATIENTS).await? else { return Ok(()) };
    let number = format!("+{}", rng.gen_range(1_000_000..9_999_999));
    session
        .execute(
            "UPDATE person SET phone = $1 WHERE person_id = $2",
            vec![number.into(), person.into()],
        )
        .await?;
    Ok(())
}

async fn family_name(session: &mut Session, rng: &mut StdRng) -> Result<()> {
    let Some(person) = some(session, rng, PATIENTS).await? else { return Ok(()) };
    session
        .execute(
            "UPDATE person SET family_name = $1 WHERE person_id = $2",
            vec![choose(rng, &FAMILY).into(), person.into()],
        )
        .await?;
    Ok(())
}
