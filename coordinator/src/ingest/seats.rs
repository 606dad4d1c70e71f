//! One session per machine: the newest connection takes over.
//!
//! Owns who sits. Invariant: a connection sits only after the handler of every older one of its machine has ended, so no
//! frame of an older one is appended after the newer one was told where to resume.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use holdfast_common::{
    ids::MachineId,
    wire::{Refusal, RefusalCode},
};
use tokio::sync::OwnedMutexGuard;

use super::ending::Ending;

/// All machines' seats.
#[derive(Debug, Default)]
pub(super) struct Seats {
    table: Mutex<HashMap<MachineId, Seat>>,
}

#[derive(Debug)]
struct Seat {
    /// The newest connection that wants to sit.
    number: u64,
    ending: Ending,
    place: Arc<tokio::sync::Mutex<()>>,
}

impl Seats {
    /// Ends the machine's older connections and waits until they are gone. Dropping the guard gives the seat up.
    pub(super) async fn take(
        &self,
        machine: MachineId,
        number: u64,
        ending: &Ending,
    ) -> Result<OwnedMutexGuard<()>, Refusal> {
        let place = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let place = match table.get(&machine) {
                Some(seat) if seat.number > number => return Err(superseded()),
                Some(seat) => {
                    seat.ending.end(superseded());
                    Arc::clone(&seat.place)
                }
                None => Arc::default(),
            };
            table.insert(machine, Seat { number, ending: ending.clone(), place: Arc::clone(&place) });
            place
        };
        let guard = place.lock_owned().await;
        ending.reason().map_or(Ok(guard), Err)
    }

    /// Forgets the seat of a connection that has ended, unless a newer one wants it.
    pub(super) fn leave(&self, machine: MachineId, number: u64) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.get(&machine).is_some_and(|seat| seat.number == number) {
            table.remove(&machine);
        }
    }
}

fn superseded() -> Refusal {
    Refusal::new(RefusalCode::SUPERSEDED, "a newer connection of this machine took over")
}
