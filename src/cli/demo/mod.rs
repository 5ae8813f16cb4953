//! The demo: a ministry, two districts and four clinics, each with a database of its own, whose
//! people all work at once while one clinic is offline for a while. It shows what travels, and ends
//! by comparing every database row by row, by key.

mod compare;
mod schema;
mod staff;
mod tree;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use super::grammar::{Demo, Global};
use super::output::count;
use super::{Context, End, exchange};
use crate::error::{Error, Result};
use compare::Comparison;
use staff::{Kind, Staff};
use tree::{AWAY, SITES, Tree};
use view::View;

/// Transactions of one server, by what it is.
fn steps(kind: Kind) -> usize {
    match kind {
        Kind::Ministry => 20,
        Kind::District => 30,
        Kind::Clinic => 60,
    }
}

/// When the clinic goes offline: after so many of its own transactions.
const LEAVES_AFTER: usize = 12;
/// How long it stays offline after everybody's work is done.
const BACK_AFTER: Duration = Duration::from_millis(700);
/// How often the view is drawn again.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// How long everything may take to arrive.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);
/// Differences that are shown.
const SHOWN_MAX: usize = 20;

pub(crate) async fn demo(context: &Context, global: &Global, arguments: &Demo) -> Result<End> {
    // Only what was said on this command line: a configuration that lies about is another server's.
    let mut tree = Tree::new(global.database_url.clone(), global.broker_url.clone())?;
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u16>()));
    let stop = exchange::stop_on_signals();
    let played = tokio::select! {
        played = play(context, &mut tree, seed) => played,
        () = stop.cancelled() => Err(Error::failed("the demo was stopped by a signal")),
    };
    let cleared = tree.clear(arguments.keep).await;
    played?;
    if let Some(kept) = cleared? {
        context.out.say(kept);
    }
    Ok(End::Done)
}

async fn play(context: &Context, tree: &mut Tree, seed: u64) -> Result<()> {
    let begun = Instant::now();
    let mut view = View::new(context.out);
    view.say(format!(
        "Seven servers: a ministry, two districts, four clinics (seed {seed}).\nEach has its own \
         database: {}.\n",
        tree.place()
    ));
    tree.plant().await?;
    view.say("Every table is under capture. Inviting and joining, from the ministry down …");
    tree.join().await?;
    view.say("The tree stands. The ministry writes roles, concepts, drugs and users …");
    reference_data(tree, seed).await?;
    view.say(format!(
        "All servers have them. Everybody works at once now; `{}` loses its line for a while.\n",
        SITES[AWAY].name
    ));
    let committed = work(tree, &mut view, seed).await?;
    let settled = drain(tree, &mut view, committed).await?;
    tree.stop_all().await?;
    let comparison = compare::compare(&tree.stores()).await?;
    report(context, tree, &comparison, &Run { seed, committed, settled, took: begun.elapsed() })
        .await
}

/// Writes the reference data at the root, and waits until every server has it.
async fn reference_data(tree: &mut Tree, seed: u64) -> Result<()> {
    let root = tree.servers.first().ok_or_else(|| Error::failed("the tree is not planted"))?;
    staff::reference_data(root.server.store(), seed).await?;
    let deadline = Instant::now() + DRAIN_WITHIN;
    for index in 0..tree.servers.len() {
        loop {
            tree.notice_failures().await?;
            let Some(server) = tree.servers.get(index) else { break };
            let mut session = server.server.store().read().await?;
            let row = session.query_one("SELECT count(*) FROM user_role", Vec::new()).await?;
            session.rollback().await?;
            if row.int(0)? >= staff::USERS {
                break;
            }
            if Instant::now() > deadline {
                return Err(Error::failed(format!(
                    "the reference data did not reach `{}`",
                    server.site.name
                )));
            }
            tokio::time::sleep(DRAW_EVERY).await;
        }
    }
    Ok(())
}

/// Everybody works; one clinic loses its line and gets it back when all are done.
async fn work(tree: &mut Tree, view: &mut View, seed: u64) -> Result<usize> {
    let committed = Arc::new(AtomicUsize::new(0));
    let away = Arc::new(AtomicUsize::new(0));
    let mut people = JoinSet::new();
    for (index, server) in tree.servers.iter().enumerate() {
        let site = server.site;
        let staff =
            Staff { store: server.server.store().clone(), name: site.name, kind: site.kind, seed };
        let own = if index == AWAY { Arc::clone(&away) } else { Arc::default() };
        let all = Arc::clone(&committed);
        people.spawn(async move {
            for step in 0..steps(staff.kind) {
                staff.step(step).await.map_err(|error| {
                    error.context(format!("a transaction at `{}` failed", staff.name))
                })?;
                own.fetch_add(1, Ordering::Relaxed);
                all.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(staff.pause(step)).await;
            }
            Ok::<_, Error>(())
        });
    }
    let mut left = false;
    while !people.is_empty() {
        tree.notice_failures().await?;
        if !left && away.load(Ordering::Relaxed) >= LEAVES_AFTER {
            tree.stop(AWAY).await?;
            left = true;
        }
        view.draw(tree, &view::look(tree).await?, committed.load(Ordering::Relaxed));
        let tick = tokio::time::sleep(DRAW_EVERY);
        tokio::select! {
            () = tick => {}
            Some(done) = people.join_next() => {
                done.map_err(|error| Error::failed("a writer panicked").with_source(error))??;
            }
        }
    }
    tokio::time::sleep(BACK_AFTER).await;
    if left {
        tree.start(AWAY).await?;
    }
    Ok(committed.load(Ordering::Relaxed))
}

/// Waits until nothing is on its way any more: two looks in a row, as a record may be between two
/// servers during one.
async fn drain(tree: &mut Tree, view: &mut View, committed: usize) -> Result<bool> {
    let deadline = Instant::now() + DRAIN_WITHIN;
    let mut calm = 0;
    loop {
        tree.notice_failures().await?;
        let samples = view::look(tree).await?;
        calm = if samples.iter().all(view::Sample::is_settled) { calm + 1 } else { 0 };
        if calm >= 2 || Instant::now() > deadline {
            view.finish(tree, &samples, committed);
            return Ok(calm >= 2);
        }
        view.draw(tree, &samples, committed);
        tokio::time::sleep(DRAW_EVERY).await;
    }
}

/// What the report says beside the comparison.
struct Run {
    seed: u64,
    committed: usize,
    settled: bool,
    took: Duration,
}

async fn report(context: &Context, tree: &Tree, found: &Comparison, run: &Run) -> Result<()> {
    let out = context.out;
    let equal = found.differences.is_empty();
    let rows: usize = found.rows.iter().map(|(_, rows)| rows).sum();
    out.object(&json!({
        "equal": equal,
        "settled": run.settled,
        "seed": run.seed,
        "servers": tree.servers.len(),
        "transactions": run.committed,
        "tables": found.rows.iter().map(|(table, rows)| json!({ "table": table, "rows": rows }))
            .collect::<Vec<_>>(),
        "rows": rows,
        "compared": found.compared,
        "differences": found.differences,
        "duration_ms": u64::try_from(run.took.as_millis()).unwrap_or(u64::MAX),
    }));
    if !run.settled {
        out.say("Not everything has arrived in time.");
    }
    if !equal {
        for difference in found.differences.iter().take(SHOWN_MAX) {
            out.say(format!("- {difference}"));
        }
        return Err(Error::failed(format!(
            "the databases differ in {} (seed {})",
            count(found.differences.len() as i64, "row"),
            run.seed
        )));
    }
    let tables: Vec<_> = found.rows.iter().map(|(table, rows)| format!("{rows} {table}")).collect();
    out.say(format!("Compared every row of every table by its key: {}.", tables.join(", ")));
    let ids = compare::ids_of_a_person(&tree.stores()).await?;
    let ids: Vec<_> = ids.iter().map(|(name, id)| format!("{id} on {name}")).collect();
    out.say(format!("One person, seven local ids: {}.", ids.join(", ")));
    out.say(format!(
        "\nEqual: {} databases, {} each, {} from all sides, in {:.1}s.",
        tree.servers.len(),
        count(rows as i64, "row"),
        count(run.committed as i64, "transaction"),
        run.took.as_secs_f64()
    ));
    Ok(())
}
