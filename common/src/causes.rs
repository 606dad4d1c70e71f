//! Errors as people read them: with what is behind them.

use std::error::Error;

/// An error and its causes in one line, from the outermost to the first: `reading the log: segment 7: input/output error`.
#[must_use]
pub fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{error::Error, fmt, io};

    use super::in_one_line;

    #[derive(Debug)]
    struct Outer(io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("reading the log")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn every_cause_is_named_once() {
        let error = Outer(io::Error::other(Outer(io::Error::other("no medium"))));
        assert_eq!(in_one_line(&error), "reading the log: reading the log: no medium");
    }
}
