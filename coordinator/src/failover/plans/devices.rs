//! Steps that make a point usable as it is: served devices, images.

use std::sync::Arc;

use super::failover::{Services, compute_failed, rto_us, spec};
use crate::{
    compute::{
        branch::Origin,
        port::{BoxFuture, Endpoint, ImageRequest},
    },
    failover::{
        job::{Output, Target},
        step::{Context, Outcome, Step, StepError},
    },
};

impl Services {
    /// Serves the disks of the chosen point under the job's id; what is served of another point is ended first. `begins`
    /// if what may have been written after an earlier choice of the point is given up, else it is there and goes on.
    pub(super) async fn serve(&self, context: &Context, begins: bool) -> Result<Vec<Endpoint>, StepError> {
        let (point, disks) = self.open(context).await?;
        let origin = Origin { point, turn: begins.then_some(context.job.changes) };
        let writable = is_branch(context)?.then_some(origin);
        let attached = self.attach.attach(context.job.id.to_string(), disks, writable).await;
        attached.map_err(compute_failed)
    }

    pub(super) async fn end_serving(&self, context: &Context) -> Result<(), StepError> {
        self.attach.detach(context.job.id.to_string()).await.map_err(compute_failed)
    }
}

/// Whether what the target writes goes to branches of the point. A machine that is moved to images of its own writes there.
pub(super) fn is_branch(context: &Context) -> Result<bool, StepError> {
    Ok(matches!(spec(context)?.target, Target::Branch | Target::Machine { stream: false }))
}

/// Serves the disks, under the job's id.
#[derive(Debug)]
pub(super) struct AttachDisks(pub(super) Services);

impl Step for AttachDisks {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            if context.job.changes > 0 {
                self.0.end_serving(context).await?;
            }
            let endpoints = self.0.serve(context, true).await?;
            self.0.keep_chosen(context).await?;
            Ok(Outcome::Done(Output::Attached { endpoints, rto_us: rto_us(context) }))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(
            async move { self.0.attach.discard(context.job.id.to_string()).await.map_err(compute_failed) },
        )
    }

    fn restore<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move { self.0.serve(context, false).await.map(drop) })
    }
}

/// Writes the disks to images.
#[derive(Debug)]
pub(super) struct WriteImages(pub(super) Services);

impl WriteImages {
    async fn discard(&self, context: &Context) -> Result<(), StepError> {
        let Target::Image { folder, .. } = &spec(context)?.target else { return Ok(()) };
        let discarded = self.0.images.discard(folder.clone(), context.job.id.to_string()).await;
        discarded.map_err(compute_failed)
    }
}

impl Step for WriteImages {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let Target::Image { folder, format, update } = &spec(context)?.target else {
                return Ok(Outcome::Done(Output::Nothing));
            };
            if context.job.changes > 0 {
                self.discard(context).await?;
            }
            let (point, disks) = self.0.open(context).await?;
            let mut images = Vec::with_capacity(disks.len());
            for disk in disks {
                let (owner, folder) = (context.job.id.to_string(), folder.clone());
                let request = ImageRequest { owner, point, disk, folder, format: *format, update: *update };
                let written = self.0.images.write(request, Arc::clone(&context.task)).await;
                images.push(written.map_err(compute_failed)?);
            }
            self.0.keep_chosen(context).await?;
            Ok(Outcome::Done(Output::Written { images }))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(self.discard(context))
    }
}
