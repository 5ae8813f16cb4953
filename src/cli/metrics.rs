//! `worker --metrics`: `/metrics` for Prometheus and `/health`, read from the tables at each
//! request, so that they tell the truth whichever process did the work.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::store::books::status::{Link, Status, status};
use crate::store::{Store, time as clock};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    neighbour: String,
    role: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Records {
    neighbour: String,
    role: String,
    state: String,
}

/// Serves until `stop`.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when the address cannot be bound.
pub(crate) async fn serve(
    address: SocketAddr,
    store: Store,
    stop: CancellationToken,
) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| {
        Error::config(format!("cannot serve metrics on `{address}`")).with_source(error)
    })?;
    let local = listener.local_addr().unwrap_or(address);
    tracing::info!(address = %local, "serving /metrics and /health");
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(store);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .map_err(|error| Error::failed("serving metrics failed").with_source(error))
}

async fn read(store: &Store) -> Result<Status> {
    let mut session = store.read().await?;
    let status = status(&mut session, clock::now()).await?;
    session.rollback().await?;
    Ok(status)
}

async fn metrics(State(store): State<Store>) -> impl IntoResponse {
    match read(&store).await.map(|status| text(&status)) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(error) => unavailable(&error),
    }
}

async fn health(State(store): State<Store>) -> impl IntoResponse {
    match read(&store).await {
        Ok(status) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/json")],
            super::status::object(&status, store.address()).to_string() + "\n",
        ),
        Err(error) => unavailable(&error),
    }
}

type Answer = (StatusCode, [(header::HeaderName, &'static str); 1], String);

fn unavailable(error: &Error) -> Answer {
    tracing::warn!(error = %error.chain(), "the status cannot be read");
    (
        StatusCode::SERVICE_UNAVAILABLE,
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        format!("{}\n", error.chain()),
    )
}

/// The status in the text format of OpenMetrics.
fn text(status: &Status) -> String {
    let mut registry = Registry::with_prefix("branchline");
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge(&mut registry, "held", "Records held here", status.held);
    gauge(&mut registry, "unsealed_changes", "Changes not sealed yet", status.unsealed);
    let age = Gauge::<f64, AtomicU64>::default();
    age.set(status.oldest_unsealed_ms.unwrap_or_default() as f64 / 1_000.0);
    registry.register("oldest_unsealed_change_seconds", "Age of the oldest unsealed change", age);
    gauge(&mut registry, "classes", "Classes under capture", status.classes);

    let (out, came_in) = (Family::<Records, Gauge>::default(), Family::<Records, Gauge>::default());
    let (held, contact) = (Family::<Of, Gauge>::default(), Family::<Of, Gauge>::default());
    let skew = Family::<Of, Gauge<f64, AtomicU64>>::default();
    for link in status.parent.iter().chain(&status.children) {
        let of = of(link);
        for (family, counts) in [(&out, &link.out), (&came_in, &link.came_in)] {
            for (state, number) in counts {
                let (neighbour, role) = (of.neighbour.clone(), of.role.clone());
                let label = Records { neighbour, role, state: state.clone() };
                family.get_or_create(&label).set(*number);
            }
        }
        held.get_or_create(&of).set(link.held);
        if let Some(time) = link.neighbour.last_contact {
            contact.get_or_create(&of).set(time / 1_000);
        }
        if let Some(ms) = link.neighbour.clock_skew_ms {
            skew.get_or_create(&of).set(ms as f64 / 1_000.0);
        }
    }
    registry.register("records_out", "Records for a neighbour, by state", out);
    registry.register("records_in", "Records from a neighbour, by state", came_in);
    registry.register("records_held", "Records from a neighbour that are held here", held);
    registry.register("last_contact_timestamp_seconds", "When a neighbour was heard of", contact);
    registry.register("clock_skew_seconds", "How far a neighbour's clock is ahead", skew);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn of(link: &Link) -> Of {
    Of {
        neighbour: link.neighbour.nickname.clone(),
        role: link.neighbour.role.as_str().to_ascii_lowercase(),
    }
}
