//! `holdfast machine console`: the serial console of a machine that runs from a recovery point.
//!
//! Owns the terminal while it is connected. Invariant: the terminal is as it was when this returns.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    thread,
};

use holdfast_coordinator::api::machine_shapes::ConsoleShape;

use crate::{
    client::{Client, escape},
    output::{Failure, Output},
};

/// Ctrl-].
const END: u8 = 0x1d;

pub(crate) async fn run(client: &Client, output: Output, machine: &str, log: bool) -> Result<(), Failure> {
    let console: ConsoleShape = client.get(&format!("/v1/machines/{}/console", escape(machine))).await?;
    if log || output.json {
        return output.answer(&console, |console| console.log.clone());
    }
    let advice = "`holdfast machine console MACHINE --log` works from anywhere";
    let Some(socket) = console.runs.console else {
        return Err(Failure::failed("the machine has no console", advice));
    };
    let stream = UnixStream::connect(&socket)
        .map_err(|error| Failure::failed(format!("{socket} cannot be connected to: {error}"), advice))?;
    eprintln!("Connected to the console of {machine} ({}). Ctrl-] ends it.", console.runs.runs_as);
    print!("{}", console.log);
    let terminal = Terminal::raw();
    let ended = tokio::task::spawn_blocking(move || connect(stream)).await;
    drop(terminal);
    eprintln!();
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::failed(format!("the console was lost: {error}"), advice)),
        Err(error) => Err(Failure::failed(error.to_string(), advice)),
    }
}

/// Copies both ways until the machine ends, or whoever types has had enough.
fn connect(stream: UnixStream) -> io::Result<()> {
    let (mut from, mut to) = (stream.try_clone()?, stream);
    let printing = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut out = io::stdout().lock();
            let shown = out.write_all(buffer.get(..length).unwrap_or_default()).and_then(|()| out.flush());
            if shown.is_err() {
                break;
            }
        }
        // Whoever types is not waited for once the machine has ended.
        let _other_half = from.shutdown(std::net::Shutdown::Both);
    });
    let mut buffer = [0; 256];
    loop {
        let length = io::stdin().lock().read(&mut buffer)?;
        let typed = buffer.get(..length).unwrap_or_default();
        let (text, is_end) = match typed.iter().position(|byte| *byte == END) {
            Some(at) => (typed.get(..at).unwrap_or_default(), true),
            None => (typed, length == 0),
        };
        if to.write_all(text).is_err() || is_end {
            break;
        }
    }
    let _printing_ends = to.shutdown(std::net::Shutdown::Both);
    let _ended = printing.join();
    Ok(())
}

/// A terminal that passes every key on; as it was when dropped.
struct Terminal(Option<String>);

impl Terminal {
    fn raw() -> Self {
        if !io::stdin().is_terminal() {
            return Self(None);
        }
        let before = stty(&["-g"]);
        if before.is_some() {
            let _as_it_is = stty(&["raw", "-echo"]);
        }
        Self(before)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _as_it_is = stty(&[before]);
        }
    }
}

fn stty(arguments: &[&str]) -> Option<String> {
    let output = Command::new("stty").args(arguments).stdin(Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
