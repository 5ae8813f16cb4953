//! The tasks of a worker one step at a time, for the simulation.

use bytes::Bytes;

use super::engine::Engine;
use super::{deliver, greeter, intake, reply};
use crate::error::Result;
use crate::publisher::relay;
use crate::store::books::Neighbour;
use crate::transport::Delivery;

/// What one task of a worker does at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Step {
    /// Seals what is committed.
    Seal,
    /// Publishes one batch to a neighbour.
    Publish,
    /// Takes messages with records, hellos and loads in.
    Take,
    /// Takes acknowledgements in.
    Settle,
    /// Says hello.
    Hello,
    /// Acknowledges what was committed and never confirmed.
    AcknowledgeLeft,
    /// Tries held records that are due.
    RetryHeld,
}

/// Runs one step. `neighbour` is the first one where the step is about none.
pub(crate) async fn run(
    engine: &Engine,
    step: Step,
    neighbour: &Neighbour,
    bodies: Vec<Bytes>,
) -> Result<usize> {
    match step {
        Step::Seal => return relay::seal(engine).await,
        Step::Publish => return relay::publish(engine, neighbour).await,
        Step::Take => {
            let deliveries = bodies
                .into_iter()
                .zip(1..)
                .map(|(body, tag)| Delivery { body, tag, redelivered: false })
                .collect();
            intake::take(engine, neighbour, deliveries).await?;
        }
        Step::Settle => reply::settle(engine, neighbour, &bodies).await?,
        Step::Hello => {
            let skipped = engine.errand(neighbour.id).skipped;
            greeter::say(engine, neighbour, skipped).await?;
        }
        Step::AcknowledgeLeft => reply::acknowledge_left(engine, neighbour).await?,
        Step::RetryHeld => deliver::retry_held(engine).await?,
    }
    Ok(0)
}
