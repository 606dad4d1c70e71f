//! Points: where recovery points lie, and what a disk looked like at each.

pub mod gaps;
pub mod assembler;
pub mod audit;
pub mod catalog;
pub mod checks;
pub mod damage;
pub mod known;
mod marks;
pub mod request;
pub mod retention;
pub mod selection;
pub mod view;
pub mod witness;
pub mod frame_cache;
pub mod read_ahead;
pub mod point_view;

pub use frame_cache::FrameCache;
pub use point_view::PointView;
