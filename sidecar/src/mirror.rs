//! Copies of requests to other services, as a route's mirror filters ask.
//!
//! A copy is sent in a task of its own when the whole request is known, so that
//! it costs the original nothing but memory; what it is answered is read and
//! dropped. What is too large to be held, or too much at once, is not copied.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::policy::concurrency::Urgency;
use crate::policy::retry::Failure;
use crate::reason::Reason;
use crate::route::Target;
use crate::routing::Way;
use crate::upstream::{Bound, Destination, Endpoint};
use crate::worker::Worker;

/// How long a copy may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Copies under way from one worker; the next are left out.
const LIMIT: usize = 256;

/// How many copies are under way from a worker.
#[derive(Default, Debug, Clone)]
pub(crate) struct Copies(Rc<Cell<usize>>);

/// One copy's place, until dropped.
struct Place(Copies);

impl Copies {
    fn place(&self) -> Option<Place> {
        let count = self.0.get();
        (count < LIMIT).then(|| {
            self.0.set(count + 1);
            Place(self.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// Sends copies of a request, made by `whole`, to the mirrors of its rule and
/// backend that take it; `carry` takes one there and reads the answer to its end.
pub(crate) fn send<Whole, Carried>(
    worker: &Rc<Worker>,
    way: &Way,
    whole: impl Fn() -> Whole,
    carry: fn(Rc<Worker>, Rc<Destination>, Rc<Endpoint>, Whole) -> Carried,
) where
    Whole: 'static,
    Carried: Future<Output = Result<(), Reason>> + 'static,
{
    for mirror in way.mirrors().filter(|mirror| mirror.takes(&worker.rng)) {
        let Target::Service { name, port } = &mirror.target else { continue };
        let Some(place) = worker.copies.place() else {
            return worker
                .warn(format_args!("{LIMIT} copies are under way: {name} gets none of this request"));
        };
        let (name, port, whole) = (name.clone(), *port, whole());
        let on = worker.clone();
        worker.serve(async move {
            let _place = place;
            let sent = async {
                let destination = on.service(&name, Some(port), port).await?;
                // Of all requests a copy is the first to be shed.
                let _admitted = destination.admit(Urgency::LEAST)?;
                let endpoint = destination.pick(Bound::default(), None, &on.rng, Instant::now())?;
                let load = destination.begin(&endpoint, Instant::now());
                let carried = carry(on.clone(), destination.clone(), endpoint, whole).await;
                match carried {
                    Ok(()) => load.succeeded(Instant::now()),
                    Err(reason) => load.failed(Failure::Mesh(reason), Instant::now()),
                }
                carried
            };
            let failed = match tokio::time::timeout(TIMEOUT, sent).await {
                Ok(Ok(())) => return,
                Ok(Err(reason)) => reason,
                Err(_) => Reason::Timeout,
            };
            tracing::debug!(service = %name, reason = %failed, "a mirrored request failed");
        });
    }
}
