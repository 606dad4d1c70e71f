//! Man pages and shell completions, made of the command line itself.

use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde_json::json;

use crate::{
    arguments::Arguments,
    output::{Failure, Output},
};

/// Prints completions for a shell.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "holdfast", &mut script);
    Output { json: false }.line(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

/// Writes a man page for each command.
pub(crate) fn pages(folder: &Path, output: Output) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::failed(
            format!("man pages cannot be written to {}: {error}", folder.display()),
            "choose another folder",
        )
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), folder).map_err(failed)?;
    let count = std::fs::read_dir(folder).map_err(failed)?.count();
    let answer = json!({ "folder": folder, "files": count });
    output.answer(&answer, |_| format!("{count} man pages in {}", folder.display()))
}
