//! Errors: each is one line on standard error, and an exit code.
//!
//! A reader of standard output that has gone away (`| head`) is no error: the program ends as if by SIGPIPE, silently.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::error::ErrorKind as Usage;

/// The input is bad, or the command line is.
const BAD_INPUT: u8 = 2;

/// What a shell reports of a program that SIGPIPE has ended.
const BROKEN_PIPE: u8 = 128 + 13;

/// The input cannot be worked on: which input, why, and what to do about it.
#[derive(Debug)]
pub(crate) struct BadInput(String);

impl BadInput {
    /// `what` is one line.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl Display for BadInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Says what went wrong, and returns the exit code for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(is_broken_pipe) {
        return ExitCode::from(BROKEN_PIPE);
    }
    say(format_args!("{error:#}"));
    if error.is::<BadInput>() { ExitCode::from(BAD_INPUT) } else { ExitCode::FAILURE }
}

/// Writes a line to standard error, if anybody reads it.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "pagelease: {line}");
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// The command line was not understood, or asked for help.
pub(crate) fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        // Nobody may be there to read it, which is fine.
        Usage::DisplayHelp | Usage::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        Usage::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(BAD_INPUT)
        }
        _ => {
            say(in_one_line(&error.render().to_string()));
            ExitCode::from(BAD_INPUT)
        }
    }
}

/// What clap says in paragraphs, without the usage that it appends.
fn in_one_line(message: &str) -> String {
    let said: Vec<&str> = message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    format!("{}; see --help", said.strip_prefix("error: ").unwrap_or(&said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_says_is_one_line() {
        let message = "error: invalid value 'gpu' for '--device <DEVICE>'\n  [possible values: software]\n\n\
                       For more information, try '--help'.\n";
        assert_eq!(
            in_one_line(message),
            "invalid value 'gpu' for '--device <DEVICE>' [possible values: software]; see --help"
        );
        let message =
            "error: the following required arguments were not provided:\n  <FILE>\n\nUsage: pagelease <FILE>\n";
        assert_eq!(in_one_line(message), "the following required arguments were not provided: <FILE>; see --help");
    }

    #[test]
    fn a_broken_pipe_is_found_under_what_was_added_to_it() {
        let error = anyhow::Error::from(io::Error::from(ErrorKind::BrokenPipe)).context("standard output");
        assert!(error.chain().any(is_broken_pipe));
        assert!(anyhow::Error::from(BadInput::new("no")).is::<BadInput>());
    }
}
