//! The way of a group cut's orders into a hold.
//!
//! Owns the box that the link puts orders into and the capture thread looks into while it holds. Its lock is never kept
//! over anything that may block on a frozen file system. It also says whether a group cut is under way, so that chores of other
//! threads do not take the processors from whoever must hold next. Limit: [`ORDERS_MAX`]; the oldest make room.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holdfast_common::wire::GroupOrder;

/// Orders kept: a mark or a cancel of one group cut is enough.
const ORDERS_MAX: usize = 8;

/// The box. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    orders: Arc<(Mutex<VecDeque<GroupOrder>>, Condvar)>,
    occupied: Arc<AtomicBool>,
}

impl Marks {
    /// Puts an order in. Never waits.
    pub fn put(&self, order: GroupOrder) {
        let mut orders = self.orders();
        if orders.len() == ORDERS_MAX {
            orders.pop_front();
        }
        orders.push_back(order);
        drop(orders);
        self.orders.1.notify_all();
    }

    /// Takes the oldest order; waits for one for at most this long.
    #[must_use]
    pub fn take(&self, at_most: Duration) -> Option<GroupOrder> {
        let waited = self.orders.1.wait_timeout_while(self.orders(), at_most, |orders| orders.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }

    /// The capture thread says whether it takes part in a group cut, or holds.
    pub fn occupy(&self, occupied: bool) {
        self.occupied.store(occupied, Ordering::Relaxed);
    }

    /// Whether this machine takes part in a group cut, or holds: what can be done later is to be done later.
    #[must_use]
    pub fn is_occupied(&self) -> bool {
        self.occupied.load(Ordering::Relaxed)
    }

    fn orders(&self) -> MutexGuard<'_, VecDeque<GroupOrder>> {
        self.orders.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
