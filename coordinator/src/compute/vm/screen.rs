//! What a machine shows: the text of its serial console, a picture of its screen.
//!
//! Limit: [`CONSOLE_BYTES_MAX`] of the console's text, its end.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{invalid, qmp::Qmp};
use crate::compute::port::ComputeError;

/// Bytes of the console's text that are looked at.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;

/// The end of the console's text; nothing if there is none yet.
pub(super) fn console_text(path: PathBuf) -> Result<Vec<u8>, ComputeError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(CONSOLE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(ComputeError::Io { action: "read", path, source }),
        Ok(bytes) => Ok(bytes),
    }
}

/// Has QEMU write a picture of the screen.
pub(super) async fn picture(control: &Path, file: &Path) -> Result<(), ComputeError> {
    let connect = Qmp::connect(control).await;
    let mut qmp = connect.map_err(|error| invalid(format!("the machine does not run ({error})")))?;
    let arguments = json!({"filename": file, "format": "png"});
    qmp.execute("screendump", arguments).await.map(drop).map_err(invalid)
}
