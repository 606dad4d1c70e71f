//! What a machine has written to its overlays, as it is at one instant, while it runs on.
//!
//! Owns bitmaps in the overlays, and what it takes to read an instant. Knows no log. QEMU keeps what was written in bitmaps: one
//! since the overlay was made, before the machine's first write, and one since the newest instant. They are kept in the overlay, so
//! they outlive a QEMU that ends by itself; in one that was killed or lost its host's power they are void, and QEMU says so.
//!
//! An instant is one transaction over all disks, in this order: new bitmaps begin; a temporary file takes what is written over from now
//! on, as it was; the bitmaps of before end. So whatever is written meanwhile is in one of the bitmaps at least, and what was written
//! before the instant is in those that end. What is read of the temporary file, and through it of the overlay, is the instant. QEMU serves that over NBD.
//! The file lies beside the overlay: nothing that the machine does waits for the coordinator.
//!
//! The images of a machine that does not run are read by a QEMU without a machine.
//!
//! Limits: two bitmaps per disk, of one bit per [`GRANULARITY`] bytes ([`GRANULARITY_LARGE`] above [`LARGE_BYTES`]); the temporary file
//! has as much as was written over while the instant was read.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use holdfast_common::{durable, ids::DiskId};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{
    END_MAX, LOOK, QEMU, QEMU_IMG, QemuMachines, TOOL_MAX,
    definition::{Definition, Files},
    ends_of, invalid, is_backed, is_sealed, kill, process, process_of,
    qmp::Qmp,
    read_made, tool,
};
use crate::compute::{
    machines::{InstantDisk, MachineInstant, Mark, OwnImages, Written},
    nbd::client::ExportView,
    port::{BoxFuture, ComputeError},
};

/// Bytes that a bit of a bitmap stands for.
const GRANULARITY: u64 = 4096;
/// The same, for large disks.
const GRANULARITY_LARGE: u64 = 64 << 10;
/// Disks of more bytes are large.
const LARGE_BYTES: u64 = 1 << 40;
/// Bitmap of all that was written since the overlay was made.
const SINCE_POINT: &str = "holdfast-written";
/// Bitmaps of what was written since an instant, by turns.
const SINCE_INSTANT: [&str; 2] = ["holdfast-since-0", "holdfast-since-1"];
/// A copy of the first, which does not change while it is read.
const COPY: &str = "holdfast-copy";

const fn granularity(size_bytes: u64) -> u64 {
    if size_bytes > LARGE_BYTES { GRANULARITY_LARGE } else { GRANULARITY }
}

/// Begins to record what is written to a new overlay.
pub(super) async fn begin_record(overlay: &Path, size_bytes: u64) -> Result<(), ComputeError> {
    // What is below is not opened: it is only served once the machine starts.
    let image = json!({
        "driver": "qcow2", "backing": Value::Null, "file": {"driver": "file", "filename": overlay},
    });
    let (image, granularity) = (format!("json:{image}"), granularity(size_bytes).to_string());
    tool(QEMU_IMG, &["bitmap", "--add", "-g", &granularity, &image, SINCE_POINT]).await.map(drop)
}

/// Ends who reads the images of a machine that does not run.
pub(super) async fn end_reader(files: &Files) -> Result<(), ComputeError> {
    let path = files.reader_id();
    if let Some(id) = process_of(&path) {
        // It only reads: nothing is lost with it.
        kill(&path, id);
        if !ends_of(&path, END_MAX).await {
            return Err(invalid(format!("QEMU's process {id} does not end; look at it on this host")));
        }
    }
    for stale in [path, files.reader_control()] {
        let _none_is_fine = fs::remove_file(stale);
    }
    Ok(())
}

/// A machine with images of its own.
struct Own {
    files: Files,
    definition: Definition,
    disks: Vec<DiskId>,
}

impl QemuMachines {
    /// `None` if there is no such machine, or it writes to what is served.
    fn own(&self, owner: &str) -> Result<Option<Own>, ComputeError> {
        let files = self.files(owner)?;
        let Some(made) = read_made(&files)? else { return Ok(None) };
        let definition = made.definition;
        if definition.disks.iter().any(|disk| disk.writable) {
            return Ok(None);
        }
        let disks: Option<Vec<DiskId>> = definition.disks.iter().map(|disk| disk.disk).collect();
        let disks = disks.ok_or_else(|| {
            invalid(
                "the machine was made by an earlier version of this program, which did not note which of its disks is which; it \
                 cannot be followed"
                    .to_owned(),
            )
        })?;
        Ok(Some(Own { files, definition, disks }))
    }
}

impl OwnImages for QemuMachines {
    fn own_disks(&self, owner: String) -> BoxFuture<'_, Result<Vec<DiskId>, ComputeError>> {
        Box::pin(async move { Ok(self.own(&owner)?.map(|own| own.disks).unwrap_or_default()) })
    }

    fn instant(
        &self,
        owner: String,
        since: Option<Mark>,
    ) -> BoxFuture<'_, Result<MachineInstant, ComputeError>> {
        Box::pin(async move {
            let _opening = self.opening(&owner).await;
            let own = self.own(&owner)?;
            let own = own.ok_or_else(|| {
                invalid(format!("there is no machine of job {owner} with images of its own"))
            })?;
            let since = since.filter(|since| SINCE_INSTANT.contains(&since.0.as_str()));
            let taken = if process(&own.files).is_some() {
                end_reader(&own.files).await?;
                own.running(since).await
            } else {
                own.standing(since).await
            };
            if taken.is_err() {
                let _the_first_error_counts = own.end().await;
            }
            taken
        })
    }

    fn end_instant(&self, owner: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            match self.own(&owner)? {
                Some(own) => own.end().await,
                None => Ok(()),
            }
        })
    }

    fn seal(&self, owner: String, sealed: bool) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            let path = self.files(&owner)?.sealed();
            if sealed {
                return durable::replace(&path, b"", durable::MODE_PRIVATE)
                    .map_err(|source| ComputeError::Io { action: "write", path, source });
            }
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(ComputeError::Io { action: "remove", path, source })
                }
                _ => Ok(()),
            }
        })
    }

    fn is_sealed(&self, owner: String) -> BoxFuture<'_, Result<bool, ComputeError>> {
        Box::pin(async move { is_sealed(&self.files(&owner)?) })
    }
}

impl Own {
    /// An instant of a machine that runs.
    async fn running(&self, since: Option<Mark>) -> Result<MachineInstant, ComputeError> {
        let mut qmp = self.control().await?;
        self.tidy(&mut qmp).await?;
        let jobs = qmp.execute("query-jobs", json!({})).await.map_err(invalid)?;
        if jobs.as_array().is_some_and(|jobs| jobs.iter().any(|job| job["type"] == "stream")) {
            return Err(invalid(
                "the machine is still being moved to its own images; it can be followed when that is done"
                    .to_owned(),
            ));
        }
        for (number, disk) in self.definition.disks.iter().enumerate() {
            let (path, size) = (self.files.fleece(number).display().to_string(), disk.size_bytes.to_string());
            tool(QEMU_IMG, &["create", "-q", "-f", "qcow2", &path, &size]).await?;
            let node = json!({
                "driver": "qcow2", "node-name": fleece(number), "backing": node(number),
                "file": {"driver": "file", "filename": path},
            });
            qmp.execute("blockdev-add", node).await.map_err(invalid)?;
        }
        let (mut since, mut at) = (since, Instant::now());
        let mut taken = Err(String::new());
        if let Some(since) = &since {
            taken = self.take(&mut qmp, Some(since)).await;
        }
        if taken.is_err() {
            // There is no such bitmap, or it is void.
            since = None;
            at = Instant::now();
            taken = self.take(&mut qmp, None).await;
        }
        let mark = taken.map_err(invalid)?;
        let hold = at.elapsed();
        let mut bitmaps = Vec::with_capacity(self.disks.len());
        for number in 0..self.disks.len() {
            bitmaps.push(match &since {
                Some(since) => Some(since.0.clone()),
                None => self.copied(&mut qmp, number).await,
            });
        }
        self.serve(&mut qmp, fleece, bitmaps.clone()).await?;
        let disks = self.open(bitmaps, since.is_some()).await?;
        Ok(MachineInstant { at, hold, mark: Some(mark), disks })
    }

    /// The transaction; gives the mark of the instant.
    async fn take(&self, qmp: &mut Qmp, since: Option<&Mark>) -> Result<Mark, String> {
        let [first, second] = SINCE_INSTANT;
        let next = if since.is_some_and(|since| since.0 == first) { second } else { first };
        let (mut begin, mut read, mut end) = (Vec::new(), Vec::new(), Vec::new());
        for (number, disk) in self.definition.disks.iter().enumerate() {
            let node = node(number);
            for stale in SINCE_INSTANT.into_iter().filter(|name| since.is_none_or(|since| since.0 != *name)) {
                let stale = json!({"node": node, "name": stale});
                let _none_is_fine = qmp.execute("block-dirty-bitmap-remove", stale).await;
            }
            let granularity = granularity(disk.size_bytes);
            begin.push(json!({"type": "block-dirty-bitmap-add", "data": {
                "node": node, "name": next, "persistent": true, "granularity": granularity,
            }}));
            read.push(json!({"type": "blockdev-backup", "data": {
                "job-id": fleece(number), "device": node, "target": fleece(number), "sync": "none",
            }}));
            end.extend(since.map(|since| {
                json!({"type": "block-dirty-bitmap-disable", "data": {"node": node, "name": since.0}})
            }));
        }
        let actions: Vec<Value> = begin.into_iter().chain(read).chain(end).collect();
        qmp.execute("transaction", json!({"actions": actions})).await?;
        Ok(Mark(next.to_owned()))
    }

    /// A copy of what was written since the overlay was made; `None` if that is not known.
    async fn copied(&self, qmp: &mut Qmp, number: usize) -> Option<String> {
        let granularity = granularity(self.definition.disks.get(number)?.size_bytes);
        let node = node(number);
        let copy = json!({"node": node, "name": COPY, "disabled": true, "granularity": granularity});
        qmp.execute("block-dirty-bitmap-add", copy).await.ok()?;
        let merge = json!({"node": node, "target": COPY, "bitmaps": [SINCE_POINT]});
        qmp.execute("block-dirty-bitmap-merge", merge).await.ok()?;
        Some(COPY.to_owned())
    }

    /// An instant of a machine that does not run: nothing changes while its images are read.
    async fn standing(&self, since: Option<Mark>) -> Result<MachineInstant, ComputeError> {
        end_reader(&self.files).await?;
        let at = Instant::now();
        let mut backed = Vec::with_capacity(self.disks.len());
        for number in 0..self.disks.len() {
            backed.push(is_backed(&self.files.overlay(number)).await?);
        }
        let arguments = self.definition.reader_arguments(&self.files, &backed);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tool(QEMU, &arguments).await?;
        let connected = Qmp::connect(&self.files.reader_control()).await;
        let mut qmp =
            connected.map_err(|error| invalid(format!("QEMU does not read the images: {error}")))?;
        // Each is tried: that one is void shows when it is asked for.
        let names: [Option<&str>; 3] =
            [since.as_ref().map(|since| since.0.as_str()), Some(SINCE_POINT), None];
        let tries = names.into_iter().enumerate().filter(|(number, name)| *number > 0 || name.is_some());
        let mut failed = None;
        for (number, name) in tries {
            let bitmaps = vec![name.map(str::to_owned); self.disks.len()];
            match self.serve(&mut qmp, node, bitmaps.clone()).await {
                Ok(()) => {
                    let disks = self.open(bitmaps, number == 0).await?;
                    // What is written from now on is still in the bitmap of before: it goes on when the machine does.
                    let mark = since.clone().filter(|_| number == 0);
                    return Ok(MachineInstant { at, hold: Duration::ZERO, mark, disks });
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| invalid("the machine's images cannot be read".to_owned())))
    }

    /// Has QEMU serve a node of each disk, with a bitmap each.
    async fn serve(
        &self,
        qmp: &mut Qmp,
        node_of: impl Fn(usize) -> String,
        bitmaps: Vec<Option<String>>,
    ) -> Result<(), ComputeError> {
        let _not_serving_is_fine = qmp.execute("nbd-server-stop", json!({})).await;
        let socket = self.files.instant_socket();
        let _none_is_fine = fs::remove_file(&socket);
        let address = json!({"addr": {"type": "unix", "data": {"path": socket}}});
        qmp.execute("nbd-server-start", address).await.map_err(invalid)?;
        for (number, bitmap) in bitmaps.into_iter().enumerate() {
            let bitmaps: Vec<String> = bitmap.into_iter().collect();
            let export = json!({
                "type": "nbd", "id": format!("instant{number}"), "node-name": node_of(number), "name": node(number),
                "bitmaps": bitmaps,
            });
            qmp.execute("block-export-add", export).await.map_err(invalid)?;
        }
        Ok(())
    }

    /// Opens what is served.
    async fn open(
        &self,
        bitmaps: Vec<Option<String>>,
        since_mark: bool,
    ) -> Result<Vec<InstantDisk>, ComputeError> {
        let (socket, ids) = (self.files.instant_socket(), self.disks.clone());
        let opening = tokio::task::spawn_blocking(move || {
            let mut disks = Vec::with_capacity(ids.len());
            for (number, (disk, bitmap)) in ids.into_iter().zip(bitmaps).enumerate() {
                let context = bitmap.map(|bitmap| format!("qemu:dirty-bitmap:{bitmap}"));
                let view =
                    ExportView::open(&socket, &node(number), context.as_deref()).map_err(|source| {
                        ComputeError::Io { action: "read from", path: socket.clone(), source }
                    })?;
                let written = if context.is_none() {
                    Written::Unknown
                } else {
                    let marked =
                        view.marked().map_err(|source| ComputeError::View { name: node(number), source })?;
                    if since_mark { Written::SinceMark(marked) } else { Written::SincePoint(marked) }
                };
                disks.push(InstantDisk { disk, view: Arc::new(view), written });
            }
            Ok(disks)
        });
        opening.await.map_err(|error| invalid(error.to_string()))?
    }

    /// Nothing of an instant is left.
    async fn end(&self) -> Result<(), ComputeError> {
        if process(&self.files).is_some() {
            let mut qmp = self.control().await?;
            self.tidy(&mut qmp).await?;
        }
        end_reader(&self.files).await?;
        let _none_is_fine = fs::remove_file(self.files.instant_socket());
        self.remove_fleeces();
        Ok(())
    }

    async fn control(&self) -> Result<Qmp, ComputeError> {
        let connected = Qmp::connect(&self.files.second_control()).await;
        connected.map_err(|error| invalid(format!("QEMU does not answer ({error}); look at the machine")))
    }

    /// Ends what an earlier instant has left in QEMU.
    async fn tidy(&self, qmp: &mut Qmp) -> Result<(), ComputeError> {
        let _not_serving_is_fine = qmp.execute("nbd-server-stop", json!({})).await;
        for number in 0..self.disks.len() {
            let _none_is_fine = qmp.execute("job-cancel", json!({"id": fleece(number)})).await;
        }
        let ended = timeout(TOOL_MAX, async {
            loop {
                let jobs = qmp.execute("query-jobs", json!({})).await?;
                if !jobs.as_array().is_some_and(|jobs| jobs.iter().any(|job| job["type"] == "backup")) {
                    return Ok(());
                }
                sleep(LOOK).await;
            }
        });
        let ended =
            ended.await.map_err(|_| invalid("QEMU does not end what it keeps of an instant".to_owned()))?;
        ended.map_err(invalid)?;
        for number in 0..self.disks.len() {
            let _none_is_fine = qmp.execute("blockdev-del", json!({"node-name": fleece(number)})).await;
            let copy = json!({"node": node(number), "name": COPY});
            let _none_is_fine = qmp.execute("block-dirty-bitmap-remove", copy).await;
        }
        self.remove_fleeces();
        Ok(())
    }

    fn remove_fleeces(&self) {
        for number in 0..self.disks.len() {
            let _none_is_fine = fs::remove_file(self.files.fleece(number));
        }
    }
}

/// The node of a disk's overlay.
fn node(number: usize) -> String {
    format!("disk{number}")
}

/// The node, and the job, of what is written over.
fn fleece(number: usize) -> String {
    format!("instant{number}")
}
