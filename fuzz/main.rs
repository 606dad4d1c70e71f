//! Fuzzing of one decoder of `holdfast_tests::decoders`, chosen by the variable `HOLDFAST_DECODER`.
//!
//! Owns only the choice; libFuzzer owns the rest. With `HOLDFAST_FUZZ_SEEDS=FOLDER` it writes the seeds of every decoder
//! into `FOLDER/NAME/` and the names to standard output, and ends.

#![no_main]

use std::{env, fs, path::Path, process, sync::OnceLock};

use holdfast_tests::decoders::{DECODERS, Decoder};

static CHOSEN: OnceLock<&Decoder> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: choose(), |bytes: &[u8]| {
    if let Some(decoder) = CHOSEN.get() {
        (decoder.decode)(bytes);
    }
});

fn choose() {
    if let Some(folder) = env::var_os("HOLDFAST_FUZZ_SEEDS") {
        write_seeds(Path::new(&folder));
        process::exit(0);
    }
    let name = env::var("HOLDFAST_DECODER").unwrap_or_default();
    let Some(decoder) = DECODERS.iter().find(|decoder| decoder.name == name) else {
        eprintln!("HOLDFAST_DECODER must name a decoder (see tests/harness/decoders.rs), not {name:?}");
        process::exit(2);
    };
    CHOSEN.get_or_init(|| decoder);
}

fn write_seeds(folder: &Path) {
    for decoder in DECODERS {
        let folder = folder.join(decoder.name);
        fs::create_dir_all(&folder).expect("the folder can be made");
        for (number, seed) in (decoder.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed).expect("the seed can be written");
        }
        println!("{}", decoder.name);
    }
}
