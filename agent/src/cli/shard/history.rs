//! `yagent history`: the changes of the masters.

use std::process::ExitCode;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::{Failure, Format, NO_SHARDS, ask, ended, find, plain};
use crate::{
    cli::{check::print_line, client::Agent},
    core::failover::{Change, HistoryEntry, ShardReport},
};

/// Arguments of `yagent history`.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct HistoryArgs {
    /// Which agent
    #[command(flatten)]
    agent: Agent,
    /// Only this shard: its id, a member's address, or its port on this host
    shard: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Prints the last changes of each shard, oldest first: 0, 4 when the agent cannot be reached, 64 when there is no such
/// shard.
#[must_use]
pub(in crate::cli) fn history(args: &HistoryArgs) -> ExitCode {
    ended(print(args), args.format, Failure::code_of_a_look)
}

fn print(args: &HistoryArgs) -> Result<ExitCode, Failure> {
    let all = ask(&args.agent)?;
    let shards: Vec<&ShardReport> = match &args.shard {
        Some(name) => vec![find(&all, name)?],
        None => all.iter().collect(),
    };
    match args.format {
        Format::Json => {
            let told: Vec<Value> =
                shards.iter().map(|shard| json!({"id": shard.id, "history": shard.history})).collect();
            print_line(&json!({"shards": told}).to_string());
        }
        Format::Table if shards.is_empty() => print_line(NO_SHARDS),
        Format::Table => print_line(table(&shards).trim_fmt().trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}

fn table(shards: &[&ShardReport]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["shard", "when (UTC)", "epoch", "from", "to", "why", "took", "writes paused", "lost"]);
    for shard in shards {
        for entry in &shard.history {
            table.add_row(row(shard, entry).map(Cell::new_owned));
        }
    }
    for column in [2, 6, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn row(shard: &ShardReport, entry: &HistoryEntry) -> [String; 9] {
    let from = if entry.from.is_empty() { "-" } else { &entry.from };
    let unknown = || "not known".to_owned();
    [
        plain(&shard.id),
        moment(entry.at_ms),
        entry.epoch.to_string(),
        plain(from),
        plain(&entry.to),
        why(entry.why).to_owned(),
        format!("{:.1} ms", entry.took_ms),
        entry.paused_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms")),
        entry.lost_bytes.map_or_else(unknown, |bytes| format!("{bytes} bytes")),
    ]
}

fn why(change: Change) -> &'static str {
    match change {
        Change::First => "first master",
        Change::Death => "master died",
        Change::Silence => "host fell silent",
        Change::Switchover => "switchover",
        Change::Force => "forced",
        Change::Return => "same again",
    }
}

/// Milliseconds since 1970 as a date and time of UTC, by the Gregorian calendar.
fn moment(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Years that begin in March have their leap day at the end; 719,468 days lie between 0000-03-01 and 1970.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02}.{:03}", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::{super::samples::shard, *};

    #[test]
    fn a_row_for_each_change() {
        let shard = shard(16379);
        let row = row(&shard, &shard.history[1]);
        assert_eq!(
            row.join("|"),
            "10.0.0.1:16379|2023-11-14 22:13:20.000|7|10.0.0.2:16379|10.0.0.1:16379|master died|34.5 ms|-|0 bytes"
        );
        assert_eq!(table(&[&shard]).lines().count(), 3);
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (ms, told) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (951_868_799_999, "2000-02-29 23:59:59.999"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
            (1_735_689_599_001, "2024-12-31 23:59:59.001"),
        ] {
            assert_eq!(moment(ms), told);
        }
    }
}
