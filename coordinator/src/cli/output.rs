//! What is printed, and how failures end the program.
//!
//! Owns standard output and error, and the exit codes. Invariant: with `--json` standard output has exactly one document.

use std::process::ExitCode;

use holdfast_coordinator::api::shapes::ErrorShape;
use serde::Serialize;

/// Where to print what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// JSON instead of text.
    pub(crate) json: bool,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    shape: ErrorShape,
}

impl Failure {
    fn new(exit: u8, code: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            exit,
            shape: ErrorShape { code: code.to_owned(), message: message.into(), advice: advice.into() },
        }
    }

    /// Something went wrong here.
    pub(crate) fn failed(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(1, "failed", message, advice)
    }

    /// The coordinator refused.
    pub(crate) const fn refused(shape: ErrorShape) -> Self {
        Self { exit: 1, shape }
    }

    /// The arguments are wrong.
    pub(crate) fn usage(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(2, "usage", message, advice)
    }

    /// The coordinator cannot be reached.
    pub(crate) fn unreachable(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(3, "unreachable", message, advice)
    }

    /// The job did not do what was asked.
    pub(crate) fn job(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(4, "job-failed", message, advice)
    }

    /// Whether the coordinator cannot be reached.
    pub(crate) const fn is_unreachable(&self) -> bool {
        self.exit == 3
    }
}

impl Output {
    /// Prints the answer: as JSON, or as the text that `show` makes of it.
    pub(crate) fn answer<T: Serialize>(
        self,
        value: &T,
        show: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            let text = serde_json::to_string_pretty(value)
                .map_err(|error| Failure::failed(format!("the answer has no JSON form: {error}"), ""))?;
            self.line(&text);
        } else {
            self.line(show(value).trim_end());
        }
        Ok(())
    }

    /// Prints a line of text; a reader that has gone away is no failure.
    pub(crate) fn line(self, text: &str) {
        use std::io::Write as _;
        let _reader_has_gone = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// Prints a failure and gives the exit code.
    pub(crate) fn failure(self, failure: &Failure) -> ExitCode {
        if self.json {
            eprintln!("{}", serde_json::to_string(&failure.shape).unwrap_or_default());
        } else {
            eprintln!("holdfast: {}", failure.shape.message);
            if !failure.shape.advice.is_empty() {
                eprintln!("  to do: {}", failure.shape.advice);
            }
        }
        ExitCode::from(failure.exit)
    }
}
