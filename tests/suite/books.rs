//! The books: one contract, over PostgreSQL and over SQLite.

use branchline::Kind;
use branchline::store::books::identity::{self, Made};
use branchline::store::books::records::{self, Filter};
use branchline::store::books::rules::{self, Change};
use branchline::store::books::servers::{self, LinkState, Role};
use branchline::store::books::status::status;
use branchline::store::books::{self, check, cleanup, invites, joining};
use branchline::store::{Datum, Dialect, Limits, Session, Store, time};
use branchline::token::Token;
use uuid::Uuid;

use crate::support::databases::Databases;

const HOUR_MS: i64 = 3_600_000;

/// Runs each scenario over both databases.
macro_rules! over_both {
    ($($scenario:ident),* $(,)?) => {
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $scenario() {
                    super::$scenario(super::Databases::postgres()).await;
                }
            )*
        }
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $scenario() {
                    super::$scenario(super::Databases::sqlite()).await;
                }
            )*
        }
    };
}

over_both!(
    init_is_safe_to_repeat,
    a_database_without_identity_says_what_to_do,
    an_invitation_is_joined_once,
    tokens_that_do_not_fit_are_refused,
    a_copy_of_the_parent_becomes_a_server_of_its_own,
    a_server_can_move_to_another_parent,
    an_expired_invitation_is_evicted,
    the_rules_of_a_server_are_its_own,
    status_counts_by_state,
    records_are_shown_and_reset,
    a_child_cleans_up_what_its_parent_has,
    the_root_cleans_up_what_its_children_have,
    imports_are_kept_until_their_sender_knows,
    check_names_what_is_not_captured,
);

async fn server(databases: &mut Databases, nickname: &str) -> Store {
    let store = Store::connect(&databases.make(nickname).await, Limits::default()).await.unwrap();
    identity::init(&store, nickname, false, "test").await.unwrap();
    store
}

async fn invite(store: &Store, nickname: &str) -> Token {
    try_invite(store, nickname, time::now() + HOUR_MS).await.unwrap()
}

async fn try_invite(store: &Store, nickname: &str, expires_at: i64) -> branchline::Result<Token> {
    books::write(store, async |session| {
        let wanted = invites::Wanted { nickname, load: false, expires_at, broker_url: "spool:/s" };
        invites::create(session, wanted, "test").await
    })
    .await
}

async fn join(store: &Store, token: &Token, moving: bool) -> branchline::Result<joining::Joining> {
    books::write(store, async |session| {
        joining::join(session, token, moving, time::now(), "test").await
    })
    .await
}

/// What the link code does when the parent says yes.
async fn accept(child: &Store, parent: &Store, token: &Token) {
    let own = books::write(child, async |session| {
        let server = servers::parent(session).await?.unwrap();
        joining::accepted(session, server.id, token.tree_id, time::now()).await?;
        books::identity(session).await
    })
    .await
    .unwrap();
    books::write(parent, async |session| {
        let invite = invites::find(session, token.invite).await?.unwrap();
        invites::use_up(session, token.invite, own.server.0).await?;
        session
            .execute(
                "UPDATE @sync_server SET uuid = $1, nickname = $2, state = 'JOINED' WHERE id = $3",
                vec![own.server.into(), own.nickname.as_str().into(), invite.server_id.into()],
            )
            .await
    })
    .await
    .unwrap();
}

async fn count(store: &Store, sql: &str) -> i64 {
    let mut session = store.read().await.unwrap();
    let row = session.query_one(&format!("SELECT count(*) FROM {sql}"), Vec::new()).await.unwrap();
    session.rollback().await.unwrap();
    row.int(0).unwrap()
}

async fn neighbours(store: &Store) -> Vec<servers::Neighbour> {
    let mut session = store.read().await.unwrap();
    let all = servers::neighbours(&mut session).await.unwrap();
    session.rollback().await.unwrap();
    all
}

async fn init_is_safe_to_repeat(mut databases: Databases) {
    let store = Store::connect(&databases.make("one").await, Limits::default()).await.unwrap();
    let (first, made) = identity::init(&store, " one ", false, "test").await.unwrap();
    assert_eq!((made, first.nickname.as_str(), first.incarnation), (Made::New, "one", 1));
    assert_eq!(first.tree_id, first.server.0);
    let (again, made) = identity::init(&store, "one", false, "test").await.unwrap();
    assert_eq!((made, again.server), (Made::Kept, first.server));
    assert_eq!(again.signing_key, first.signing_key);
    assert!(again.database_identity.is_some());
    let (renamed, made) = identity::init(&store, "uno", false, "test").await.unwrap();
    assert_eq!((made, renamed.server), (Made::Renamed, first.server));

    invite(&store, "kid").await;
    let (renewed, made) = identity::init(&store, "duo", true, "test").await.unwrap();
    assert_eq!(made, Made::Renewed);
    assert_ne!(renewed.server, first.server);
    assert_ne!(renewed.signing_key, first.signing_key);
    assert!(neighbours(&store).await.is_empty());
    assert_eq!(count(&store, "@sync_origin").await, 2);
    assert!(count(&store, "@sync_audit").await >= 3);

    for bad in ["", "  ", "a\nb", &"x".repeat(65)] {
        let error = identity::init(&store, bad, false, "test").await.err().unwrap();
        assert_eq!(error.kind(), Kind::Config, "{bad:?}");
    }
}

async fn a_database_without_identity_says_what_to_do(mut databases: Databases) {
    let store = Store::connect(&databases.make("bare").await, Limits::default()).await.unwrap();
    for migrated in [false, true] {
        if migrated {
            store.migrate().await.unwrap();
        }
        let mut session = store.read().await.unwrap();
        let error = books::identity(&mut session).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("branchline init"), "{error}");
    }
}

async fn an_invitation_is_joined_once(mut databases: Databases) {
    let root = server(&mut databases, "root").await;
    let child = server(&mut databases, "child").await;
    let token = invite(&root, "kid").await;

    let invited = neighbours(&root).await;
    assert_eq!(invited.len(), 1);
    assert_eq!((invited[0].role, invited[0].state), (Role::Child, LinkState::Invited));
    assert_eq!(invited[0].server.0, token.invite);
    assert_eq!(count(&root, "@sync_server_class").await, count(&root, "@sync_class").await);
    let error = try_invite(&root, "kid", time::now() + HOUR_MS).await.unwrap_err();
    assert!(error.to_string().contains("servers evict kid"), "{error}");
    assert!(try_invite(&root, "root", time::now() + HOUR_MS).await.is_err());

    let asked = join(&child, &token, false).await.unwrap();
    assert_eq!(asked.parent.state, LinkState::Joining);
    assert_eq!(asked.parent.address, "spool:/s");
    assert_eq!(asked.parent.public_key, Some(token.parent_key));
    assert!(!asked.renewed);
    // A request that got lost is simply made again.
    join(&child, &token, false).await.unwrap();
    assert_eq!(neighbours(&child).await.len(), 1);

    accept(&child, &root, &token).await;
    let error = join(&child, &token, false).await.err().unwrap();
    assert!(error.to_string().contains("a child of `root` already"), "{error}");
    let mut session = child.read().await.unwrap();
    assert_eq!(books::identity(&mut session).await.unwrap().tree_id, token.tree_id);
    let parent = servers::find(&mut session, "root").await.unwrap();
    assert_eq!(parent.state, LinkState::Joined);
    assert_eq!(parent.server, token.parent);
    assert!(servers::find(&mut session, "nobody").await.is_err());
}

async fn tokens_that_do_not_fit_are_refused(mut databases: Databases) {
    let root = server(&mut databases, "root").await;
    let child = server(&mut databases, "child").await;
    let other = server(&mut databases, "other").await;
    let refused = async |store: &Store, token: &Token, text: &str| {
        let error = join(store, token, false).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains(text), "{error}");
    };

    let token = invite(&root, "kid").await;
    refused(&root, &token, "this server's own").await;
    let mut late = token.clone();
    late.expires_at = time::now() - 1;
    refused(&child, &late, "expired").await;

    join(&child, &token, false).await.unwrap();
    accept(&child, &root, &token).await;
    refused(&child, &invite(&other, "kid").await, "has a parent, `root`").await;
    // Upside down: the root as a child of its child, or of anything below.
    refused(&root, &invite(&child, "up").await, "a child of this server").await;
    let mut below = invite(&child, "up2").await;
    below.parent = branchline::id::ServerId::random();
    refused(&root, &below, "below this server").await;
    // A tree of its own cannot become part of another one.
    invite(&other, "somebody").await;
    refused(&other, &invite(&root, "whole-tree").await, "for another tree").await;
}

async fn a_copy_of_the_parent_becomes_a_server_of_its_own(mut databases: Databases) {
    let root = server(&mut databases, "root").await;
    let token = invite(&root, "kid").await;
    books::write(&root, async |session| {
        let id = fill(session, "NEW", 0).await?;
        session
            .execute(
                "INSERT INTO @sync_row (class_id, key, state) VALUES (1, 'k', $1)",
                vec![vec![1_u8].into()],
            )
            .await?;
        hold(session).await?;
        import(session, "COMMITTED", 1, time::now()).await?;
        Ok(id)
    })
    .await
    .unwrap();
    let parent = { books_identity(&root).await };
    drop(root);
    let url = databases.copy("root", "copy").await;
    let copy = Store::connect(&url, Limits::default()).await.unwrap();

    let asked = join(&copy, &token, false).await.unwrap();
    assert!(asked.renewed);
    assert_ne!(asked.identity.server, parent.server);
    assert_eq!(asked.identity.nickname, "kid");
    assert_eq!(asked.parent.server, parent.server);
    assert_eq!(count(&copy, "@sync_row").await, 1);
    assert_eq!(count(&copy, "@sync_origin").await, 2);
    for table in ["record", "server_record", "invite"] {
        assert_eq!(count(&copy, &format!("@sync_{table}")).await, 0, "{table}");
    }
    assert_eq!(neighbours(&copy).await.len(), 1);
    // What is held stays held, and is the new parent's business now.
    assert_eq!(count(&copy, "@sync_held").await, 1);
    let kept = format!("@sync_import WHERE state = 'FAILED' AND server_id = {}", asked.parent.id);
    assert_eq!(count(&copy, &kept).await, 1);
    assert_eq!(count(&copy, "@sync_import").await, 1);
    // The same token once more, before the answer.
    assert!(!join(&copy, &token, false).await.unwrap().renewed);
}

async fn books_identity(store: &Store) -> books::Identity {
    let mut session = store.read().await.unwrap();
    let own = books::identity(&mut session).await.unwrap();
    session.rollback().await.unwrap();
    own
}

async fn a_server_can_move_to_another_parent(mut databases: Databases) {
    let root = server(&mut databases, "root").await;
    let north = server(&mut databases, "north").await;
    let child = server(&mut databases, "child").await;
    for (store, name) in [(&north, "north"), (&child, "child")] {
        let token = invite(&root, name).await;
        join(store, &token, false).await.unwrap();
        accept(store, &root, &token).await;
    }
    books::write(&child, async |session| {
        fill(session, "SENT", 0).await?;
        fill(session, "COMMITTED", 0).await
    })
    .await
    .unwrap();

    let token = invite(&north, "child").await;
    assert!(join(&child, &token, false).await.err().unwrap().to_string().contains("--move"));
    let moved = join(&child, &token, true).await.unwrap();
    assert_eq!(moved.moved_from.as_deref(), Some("root"));
    assert_eq!(moved.parent.nickname, "north");
    // What the old parent had not committed is for the new one; what it had stays.
    assert_eq!(count(&child, "@sync_record WHERE state = 'NEW'").await, 1);
    assert_eq!(count(&child, "@sync_record WHERE state = 'COMMITTED'").await, 1);
    // The parent says no: then any other token is good.
    books::write(&child, async |session| {
        joining::refused(session, moved.parent.id, "the token was used").await
    })
    .await
    .unwrap();
    join(&child, &invite(&root, "child-again").await, false).await.unwrap();
}

async fn an_expired_invitation_is_evicted(mut databases: Databases) {
    let root = server(&mut databases, "root").await;
    try_invite(&root, "late", time::now() - 1).await.unwrap();
    invite(&root, "kid").await;
    let names: Vec<_> = neighbours(&root).await.into_iter().map(|one| one.nickname).collect();
    assert_eq!(names, ["kid"]);
    assert_eq!(count(&root, "@sync_invite").await, 1);
    let done = cleanup::cleanup(&root, 0, "test").await.unwrap();
    assert_eq!(done, cleanup::Cleaned::default());
}

async fn the_rules_of_a_server_are_its_own(mut databases: Databases) {
    let root = server(&mut databases, "root").await;
    invite(&root, "kid").await;
    let exclude = |name, send, receive| Change { name, allow: false, send, receive };
    books::write(&root, async |session| {
        let kid = servers::find(session, "kid").await?;
        let rule = rules::set(session, Some(&kid), exclude("obs", true, false), "test").await?;
        assert_eq!((rule.send_to, rule.receive_from), (false, true));
        // What the change does not speak of stays as the longest match has it.
        let rule = rules::set(session, Some(&kid), exclude("hl7_in", true, false), "test").await?;
        assert_eq!((rule.send_to, rule.receive_from), (false, false));
        rules::set(session, None, exclude("secret*", true, true), "test").await?;
        let own = rules::rules_of(session, kid.id).await?;
        assert!(rules::effective(&own, "secret_plan").is_none());
        rules::propagate(session, "secret*", std::slice::from_ref(&kid), "test").await?;
        let own = rules::rules_of(session, kid.id).await?;
        assert!(!rules::effective(&own, "secret_plan").unwrap().send_to);
        assert!(rules::propagate(session, "nothing", &[kid], "test").await.is_err());
        assert!(rules::set(session, None, exclude("a*b", true, true), "test").await.is_err());
        Ok(())
    })
    .await
    .unwrap();
    // Who comes later gets the default with the rest.
    invite(&root, "later").await;
    let mut session = root.read().await.unwrap();
    let later = servers::find(&mut session, "later").await.unwrap();
    let own = rules::rules_of(&mut session, later.id).await.unwrap();
    assert!(!rules::effective(&own, "secret_plan").unwrap().receive_from);
}

/// A record, as sealing makes it.
async fn fill(session: &mut Session, state: &str, age_ms: i64) -> branchline::Result<i64> {
    let uuid = Uuid::new_v4();
    let row = session
        .query_one(
            "INSERT INTO @sync_batch (origin_id, count, signature, tree) VALUES (1, 1, $1, $1) \
             RETURNING id",
            vec![vec![0_u8].into()],
        )
        .await?;
    let row = session
        .query_one(
            "INSERT INTO @sync_record (uuid, original_uuid, timestamp, state, contained_classes, \
             payload, origin_id, number, batch_id, batch_index) \
             VALUES ($1, $1, $2, $3, 'obs', $4, 1, 1, $5, 0) RETURNING id",
            vec![
                uuid.into(),
                Datum::time(time::now() - age_ms),
                state.into(),
                vec![0_u8].into(),
                row.int(0)?.into(),
            ],
        )
        .await?;
    row.int(0)
}

async fn deliver(session: &mut Session, record: i64, server: i64, state: &str) {
    session
        .execute(
            "INSERT INTO @sync_server_record (record_id, server_id, state) VALUES ($1, $2, $3)",
            vec![record.into(), server.into(), state.into()],
        )
        .await
        .unwrap();
}

async fn import(
    session: &mut Session,
    state: &str,
    server: i64,
    at: i64,
) -> branchline::Result<Uuid> {
    let uuid = Uuid::new_v4();
    session
        .execute(
            "INSERT INTO @sync_import (original_uuid, uuid, state, server_id, timestamp) \
             VALUES ($1, $1, $2, $3, $4)",
            vec![uuid.into(), state.into(), server.into(), Datum::time(at)],
        )
        .await?;
    Ok(uuid)
}

async fn hold(session: &mut Session) -> branchline::Result<()> {
    let uuid = import(session, "FAILED", 1, time::now()).await?;
    session
        .execute(
            "INSERT INTO @sync_held (original_uuid, uuid, server_id, kind, reason, classes, payload) \
             VALUES ($1, $1, 1, 'reference', 'a row is missing', 'obs', $2)",
            vec![uuid.into(), vec![0_u8].into()],
        )
        .await?;
    Ok(())
}

/// A root with two children, or a child with a parent and a child of its own.
async fn family(databases: &mut Databases, with_parent: bool) -> (Store, i64, i64) {
    let store = server(databases, "middle").await;
    if with_parent {
        let parent = server(databases, "top").await;
        let token = invite(&parent, "middle").await;
        join(&store, &token, false).await.unwrap();
        accept(&store, &parent, &token).await;
    }
    invite(&store, "one").await;
    invite(&store, "two").await;
    let all = neighbours(&store).await;
    let id = |name: &str| all.iter().find(|one| one.nickname == name).unwrap().id;
    let ids = (id("one"), id("two"));
    (store, ids.0, ids.1)
}

async fn status_counts_by_state(mut databases: Databases) {
    let (store, one, two) = family(&mut databases, true).await;
    books::write(&store, async |session| {
        for (state, to_one) in [("SENT", "NEW"), ("COMMITTED", "COMMITTED"), ("SENT", "COMMITTED")]
        {
            let record = fill(session, state, 0).await?;
            deliver(session, record, one, to_one).await;
        }
        import(session, "COMMITTED", two, time::now()).await?;
        session
            .execute(
                "INSERT INTO @sync_change (class_id, op, changed_at) VALUES (1, 1, $1)",
                vec![Datum::time(time::now() - 5_000)],
            )
            .await?;
        hold(session).await
    })
    .await
    .unwrap();
    let mut session = store.read().await.unwrap();
    let now = status(&mut session, time::now()).await.unwrap();
    let pairs = |counts: &books::status::Counts| counts.clone();
    let parent = now.parent.unwrap();
    assert_eq!(pairs(&parent.out), [("SENT".to_owned(), 2), ("COMMITTED".to_owned(), 1)]);
    assert_eq!(parent.waiting(), 2);
    assert_eq!(now.children.len(), 2);
    assert_eq!(pairs(&now.children[0].out), [("NEW".to_owned(), 1), ("COMMITTED".to_owned(), 2)]);
    assert_eq!(pairs(&now.children[1].came_in), [("COMMITTED".to_owned(), 1)]);
    assert_eq!((now.held, now.unsealed), (1, 1));
    let age = now.oldest_unsealed_ms.unwrap();
    assert!((5_000..60_000).contains(&age), "{age}");
}

async fn records_are_shown_and_reset(mut databases: Databases) {
    let (store, one, two) = family(&mut databases, false).await;
    books::write(&store, async |session| {
        for state in ["FAILED_AND_STOPPED", "COMMITTED"] {
            let record = fill(session, "NEW", 0).await?;
            deliver(session, record, one, state).await;
            deliver(session, record, two, "FAILED_AND_STOPPED").await;
        }
        Ok(())
    })
    .await
    .unwrap();
    books::write(&store, async |session| {
        let all = records::list(session, Filter { limit: 10, ..Filter::default() }).await?;
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].servers.len(), 2);
        assert_eq!(all[0].servers[0].state, "FAILED_AND_STOPPED");
        assert_eq!(all[0].origin.as_deref(), Some("middle"));
        let kid = servers::find(session, "one").await?;
        let filter = Filter { state: Some("COMMITTED"), server: Some(&kid), limit: 10 };
        assert_eq!(records::list(session, filter).await?.len(), 1);
        assert!(records::find(session, Uuid::new_v4()).await.is_err());

        // What a child has committed is never sent again.
        assert_eq!(records::reset(session, Some(all[1].uuid), Some(&kid), "test").await?, 0);
        assert_eq!(records::reset(session, Some(all[1].uuid), None, "test").await?, 1);
        assert_eq!(records::reset(session, None, Some(&kid), "test").await?, 1);
        assert_eq!(records::reset(session, None, None, "test").await?, 1);
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(count(&store, "@sync_server_record WHERE state = 'NEW'").await, 3);
}

async fn a_child_cleans_up_what_its_parent_has(mut databases: Databases) {
    let (store, one, _) = family(&mut databases, true).await;
    books::write(&store, async |session| {
        for (state, to_one, age) in [
            ("COMMITTED", Some("COMMITTED"), HOUR_MS),
            ("NOT_SUPPOSED_TO_SYNC", None, HOUR_MS),
            ("REJECTED", Some("NOT_SUPPOSED_TO_SYNC"), HOUR_MS),
            // These stay: young, on the way, or a child still waits.
            ("COMMITTED", None, 0),
            ("SENT", None, HOUR_MS),
            ("FAILED_AND_STOPPED", None, HOUR_MS),
            ("COMMITTED", Some("SENT"), HOUR_MS),
            ("COMMITTED", Some("FAILED_AND_STOPPED"), HOUR_MS),
        ] {
            let record = fill(session, state, age).await?;
            if let Some(state) = to_one {
                deliver(session, record, one, state).await;
            }
        }
        Ok(())
    })
    .await
    .unwrap();
    let done = cleanup::cleanup(&store, time::now() - HOUR_MS / 2, "test").await.unwrap();
    assert_eq!((done.records, done.batches), (3, 3));
    assert_eq!(count(&store, "@sync_record").await, 5);
    let again = cleanup::cleanup(&store, time::now() - HOUR_MS / 2, "test").await.unwrap();
    assert_eq!(again, cleanup::Cleaned::default());
}

async fn the_root_cleans_up_what_its_children_have(mut databases: Databases) {
    let (store, one, two) = family(&mut databases, false).await;
    books::write(&store, async |session| {
        for (to_one, to_two, age) in [
            ("COMMITTED", "NOT_SUPPOSED_TO_SYNC", HOUR_MS),
            ("COMMITTED", "SENT", HOUR_MS),
            ("REJECTED", "FAILED", HOUR_MS),
            ("COMMITTED", "COMMITTED", 0),
        ] {
            let record = fill(session, "NEW", age).await?;
            deliver(session, record, one, to_one).await;
            deliver(session, record, two, to_two).await;
        }
        // More than one batch.
        for _ in 0..1_200 {
            fill(session, "NEW", HOUR_MS).await?;
        }
        Ok(())
    })
    .await
    .unwrap();
    let done = cleanup::cleanup(&store, time::now() - HOUR_MS / 2, "test").await.unwrap();
    assert_eq!((done.server_records, done.records), (4, 1_201));
    assert_eq!(count(&store, "@sync_record").await, 3);
    assert_eq!(count(&store, "@sync_server_record").await, 4);
}

async fn imports_are_kept_until_their_sender_knows(mut databases: Databases) {
    let (store, one, two) = family(&mut databases, false).await;
    let old = time::now() - 10 * 24 * HOUR_MS;
    books::write(&store, async |session| {
        for server in [one, two, 999] {
            import(session, "COMMITTED_AND_CONFIRMATION_SENT", server, old).await?;
            import(session, "COMMITTED", server, old).await?;
            import(session, "FAILED", server, old).await?;
            import(session, "COMMITTED_AND_CONFIRMATION_SENT", server, time::now()).await?;
        }
        // One has been heard of since, two has not; 999 is no neighbour any more.
        for (server, contact) in [(one, time::now()), (two, old)] {
            session
                .execute(
                    "UPDATE @sync_server SET last_contact = $1 WHERE id = $2",
                    vec![Datum::time(contact), server.into()],
                )
                .await?;
        }
        Ok(())
    })
    .await
    .unwrap();
    let done = cleanup::cleanup(&store, old + HOUR_MS, "test").await.unwrap();
    assert_eq!(done.imports, 2);
    assert_eq!(count(&store, "@sync_import").await, 10);
}

async fn check_names_what_is_not_captured(mut databases: Databases) {
    let store = server(&mut databases, "root").await;
    let mut session = store.begin().await.unwrap();
    session.batch("CREATE TABLE obs (id integer); CREATE TABLE hl7_in (id integer)").await.unwrap();
    if session.dialect() == Dialect::Postgres {
        session
            .batch("CREATE SCHEMA billing; CREATE TABLE billing.invoice (id int)")
            .await
            .unwrap();
    }
    session.commit().await.unwrap();
    let mut session = store.read().await.unwrap();
    let facts = check::facts(&mut session, time::now()).await.unwrap();
    let open: Vec<_> = facts
        .not_captured
        .iter()
        .filter(|table| !table.by_rule)
        .map(|table| table.table.as_str())
        .collect();
    match store.dialect() {
        Dialect::Postgres => assert_eq!(open, ["billing.invoice", "obs"]),
        Dialect::Sqlite => assert_eq!(open, ["obs"]),
    }
    assert!(facts.not_captured.iter().any(|table| table.table == "hl7_in" && table.by_rule));
}
