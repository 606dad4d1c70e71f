//! Tests with real parts, one module per subject. All need a Linux host; most need root, and say so when they are skipped.

mod agent_engine;
mod coordinator;
mod damage;
mod failback;
mod failover;
mod file_systems;
mod freeze;
mod groups;
mod hooks;
mod image;
mod link;
mod nbd;
mod operators;
mod plan;
mod witness;
mod oracle;
mod mariadb;
mod postgres;
mod split_brain;
mod machine_boot;
mod machine_tracking;
mod tracking;
mod transport;
mod machine_protect;
mod machine_stack;
mod machine_vm;
