//! The metrics of all sandboxes of the node, gathered from their shims: as text, as JSON, as a table, or for Prometheus.

mod gather;
mod server;
mod table;
mod text;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use runsc_config::Policy;

use crate::Failure;
use gather::Gatherer;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the sandboxes. Repeat for several. Default: the folder of the node's policy.
    #[arg(long)]
    root: Vec<PathBuf>,
    /// Deadline for the answer of one shim, in milliseconds.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
    /// Print JSON.
    #[arg(long, conflicts_with_all = ["top", "listen"])]
    json: bool,
    /// Show a table of the sandboxes that refreshes. Show it once if the output is no terminal.
    #[arg(long, conflicts_with = "listen")]
    top: bool,
    /// With --top: show the table this many times, then exit.
    #[arg(long, requires = "top", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Seconds between two tables.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Serve Prometheus at this address: `unix:PATH` or `IP:PORT`. An IP outside of the loopback needs all of --tls-….
    #[arg(long)]
    listen: Option<server::Address>,
    #[command(flatten)]
    tls: server::Tls,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let roots = if arguments.root.is_empty() {
        vec![Policy::load_default()?.runsc().root.clone()]
    } else {
        arguments.root.clone()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let problems = runtime.block_on(async {
        let limit = Duration::from_millis(arguments.timeout);
        let gatherer = Gatherer::new(&roots, limit);
        match &arguments.listen {
            Some(address) => {
                server::serve(address, &arguments.tls, gatherer).await?;
                Ok::<_, Failure>(Vec::new())
            }
            None if arguments.top => {
                let rounds = arguments.rounds.or((!is_terminal()).then_some(1));
                top(&gatherer, arguments.interval, rounds).await
            }
            None => {
                let gathered = gatherer.gather().await;
                if arguments.json {
                    crate::text::json(&gathered.families())?;
                } else {
                    crate::text::block(&gathered.text());
                }
                Ok(gathered.problems)
            }
        }
    })?;
    for problem in &problems {
        crate::text::complain(problem);
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Rates need two looks. Returns why sandboxes are missing, if some are.
async fn top(
    gatherer: &Gatherer,
    seconds: u64,
    rounds: Option<u64>,
) -> Result<Vec<String>, Failure> {
    let mut left = rounds.unwrap_or(u64::MAX);
    let interval = Duration::from_secs(seconds);
    let first = gatherer.gather().await;
    let mut before = table::Rows::of(&first);
    let mut problems = first.problems;
    // A table of nothing, again and again, would look like a node with no sandboxes.
    while left > 0 && problems.is_empty() {
        left -= 1;
        tokio::time::sleep(interval).await;
        let gathered = gatherer.gather().await;
        let now = table::Rows::of(&gathered);
        problems = gathered.problems;
        let shown = now.shown(&before, is_terminal());
        if is_terminal() {
            crate::text::clear();
        }
        crate::text::block(&shown);
        crate::text::flush()?;
        before = now;
    }
    Ok(problems)
}

fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
