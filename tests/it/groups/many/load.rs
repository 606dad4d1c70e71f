//! A usual load beside the counters: files that grow, are overwritten, and are synced now and then.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use holdfast_common::entropy::{Entropy as _, SeededEntropy};

const FILE_BYTES: u64 = 8 << 20;
const PIECE_BYTES: u64 = 16 << 10;

/// Writers, one for each folder; they end when this is dropped.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) fn start<'a>(folders: impl Iterator<Item = &'a Path>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let folders: Vec<PathBuf> = folders.map(Path::to_owned).collect();
        let mut threads = Vec::new();
        for (folder, seed) in folders.iter().zip(1..) {
            let file = File::create(folder.join("load"))?;
            file.set_len(FILE_BYTES)?;
            let end = Arc::clone(&stop);
            threads.push(thread::spawn(move || write(&file, seed, &end)));
        }
        Ok(Self { stop, threads })
    }
}

fn write(file: &File, seed: u64, end: &AtomicBool) {
    let random = SeededEntropy::new(seed);
    let mut bytes = vec![0; usize::try_from(PIECE_BYTES).unwrap()];
    while !end.load(SeqCst) {
        random.fill(&mut bytes);
        let at = random.next_u64() % (FILE_BYTES / PIECE_BYTES) * PIECE_BYTES;
        file.write_all_at(&bytes, at).unwrap();
        if random.next_u64().is_multiple_of(16) {
            file.sync_data().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _failed_loudly_already = thread.join();
        }
    }
}
