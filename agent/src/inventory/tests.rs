//! Tests of the inventory on machines made of files.
