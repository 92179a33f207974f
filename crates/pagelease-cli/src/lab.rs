//! `pagelease lab`: every design of device-exclusive memory, checked exhaustively; and the history that breaks it.
//!
//! | file | command |
//! |---|---|
//! | `check` | `pagelease lab`: the table; `pagelease lab show`: one history |
//! | `sampling` | `pagelease lab --random`, `pagelease lab merge`: random histories, over many processes |
//! | this | `list`, `explore`, `export`, `--replay` |

mod check;
mod sampling;

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use pagelease_lab::case::Token;
use pagelease_lab::history::History;
use pagelease_lab::render::{self, Format};
use pagelease_lab::{Property, catalogue};

use crate::failure::BadInput;

/// Check every design of device-exclusive memory, the kernel's and this one, and show what breaks them
///
/// Without a command: prints the table, designs down, properties across.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only this design; may be given more than once
    #[arg(long, value_name = "NAME")]
    design: Vec<String>,
    /// How the table is printed
    #[arg(long, value_enum, default_value_t = TableFormat::Text, conflicts_with_all = ["random", "replay"])]
    table: TableFormat,
    /// Worker threads; as many as there are CPUs unless given
    #[arg(long)]
    threads: Option<std::num::NonZero<usize>>,
    /// Replay the history that TOKEN names
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["random", "design"])]
    replay: Option<String>,
    /// How the history is printed
    #[arg(long, value_parser = format_named, default_value = "text", requires = "replay")]
    format: Format,
    #[command(flatten)]
    sampling: sampling::Args,
}

/// How the table is printed.
#[derive(Copy, Clone, Debug, Eq, PartialEq, clap::ValueEnum)]
enum TableFormat {
    /// For a terminal, with depth and time
    Text,
    /// As in docs/VERDICTS.md: the same in every run
    Markdown,
    /// One object: see docs/JSON.md
    Json,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print the shortest history that breaks PROPERTY under DESIGN
    Show {
        /// The design
        design: String,
        /// The property
        #[arg(value_parser = property_named)]
        property: Property,
        /// Only in this scenario
        #[arg(long)]
        scenario: Option<String>,
        /// How it is printed; `html` is one page that stands alone
        #[arg(long, value_parser = format_named, default_value = "text")]
        format: Format,
        /// Write it to this file
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// List the designs, their scenarios, the properties
    List {
        /// The scenarios of this design
        design: Option<String>,
    },
    /// Walk through a design's states by hand, in a browser
    Explore {
        /// The design
        design: String,
        /// The scenario
        #[arg(long, default_value = "touch")]
        scenario: String,
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:3000")]
        address: SocketAddr,
    },
    /// Print a history of the shipped protocol as a schedule for the real engine's tests
    Export {
        /// The history
        token: String,
    },
    /// Sum up what shards of --random printed
    Merge(sampling::Merge),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        None => match &args.replay {
            Some(token) => replay(token, args.format),
            None if args.sampling.wanted() => sampling::run(&args.sampling, &args.design, threads(args.threads)),
            None => check::table(&args.design, args.table, threads(args.threads)),
        },
        Some(Command::Show { design, property, scenario, format, output }) => {
            check::show(design, *property, scenario.as_deref(), *format, output.as_deref())
        }
        Some(Command::List { design }) => list(design.as_deref()),
        Some(Command::Explore { design, scenario, address }) => explore(design, scenario, *address),
        Some(Command::Export { token }) => export(token),
        Some(Command::Merge(merge)) => sampling::merge(merge),
    }
}

fn threads(asked: Option<std::num::NonZero<usize>>) -> usize {
    asked.or_else(|| std::thread::available_parallelism().ok()).map_or(1, std::num::NonZero::get)
}

fn format_named(name: &str) -> Result<Format, String> {
    let known = || Format::ALL.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
    Format::named(name).ok_or_else(|| format!("it is one of {}", known()))
}

fn property_named(name: &str) -> Result<Property, String> {
    let known = || Property::ALL.iter().map(|property| property.name()).collect::<Vec<_>>().join(", ");
    Property::named(name).ok_or_else(|| format!("it is one of {}", known()))
}

/// Makes an error of the lab's the caller's: a name or a history that is not there.
fn bad(error: impl std::fmt::Display) -> BadInput {
    BadInput::new(error.to_string())
}

/// Prints a history, as wide as the terminal.
fn print(history: &History, format: Format, to: &mut impl Write) -> Result<()> {
    let width = match terminal_size::terminal_size() {
        Some((width, _)) if std::io::stdout().is_terminal() => usize::from(width.0).max(render::MIN_WIDTH),
        _ => render::DEFAULT_WIDTH,
    };
    to.write_all(render::render(history, format, width).as_bytes())?;
    Ok(())
}

fn replay(token: &str, format: Format) -> Result<ExitCode> {
    let token: Token = token.parse().map_err(bad)?;
    let history = catalogue::replay(&token).map_err(bad)?;
    print(&history, format, &mut std::io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

fn list(design: Option<&str>) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if let Some(design) = design {
        let entry = catalogue::design(design).map_err(bad)?;
        writeln!(out, "{}: {}\n", entry.name, entry.who)?;
        for case in entry.cases.iter().chain(&entry.large) {
            writeln!(out, "{:16} {}", case.names().1, case.what())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "Designs:")?;
    for entry in catalogue::all() {
        writeln!(out, "  {:30} {:9} {}", entry.name, entry.questions, entry.who)?;
    }
    writeln!(out, "\nProperties:")?;
    for property in Property::ALL {
        writeln!(out, "  {:12} {}", property.name(), property.asks())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn explore(design: &str, scenario: &str, address: SocketAddr) -> Result<ExitCode> {
    let entry = catalogue::design(design).map_err(bad)?;
    let case = entry.case(scenario).map_err(bad)?;
    // Asked first: the explorer would panic where the address is taken.
    drop(std::net::TcpListener::bind(address).map_err(|error| bad(format!("cannot listen on {address}: {error}")))?);
    crate::failure::say(format_args!("exploring {design} in {scenario}; open http://{address}/ and stop with Ctrl-C"));
    case.explore(address);
    Ok(ExitCode::SUCCESS)
}

fn export(token: &str) -> Result<ExitCode> {
    let token: Token = token.parse().map_err(bad)?;
    let schedule = pagelease_lab::export::schedule(&token).map_err(bad)?;
    std::io::stdout().lock().write_all(schedule.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
