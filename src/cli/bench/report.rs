//! What was measured: figures by what they are of, as a table and as JSON.

use std::collections::BTreeMap;
use std::io;

use comfy_table::{Cell, CellAlignment};
use serde::Serialize;
use serde_json::{Value, json};

use super::place::Kind;
use crate::cli::out::{Out, number, say, table};

/// What a figure is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Of {
    /// What was measured, in words.
    pub(super) what: String,
    /// On which database; none: the figure is of a floor that has none.
    pub(super) database: Option<Kind>,
    /// How: what else one has to know of the run.
    pub(super) conditions: String,
    /// Its unit.
    pub(super) unit: &'static str,
}

/// What a figure is held against, in the same run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Floor {
    /// What.
    pub(super) name: &'static str,
    /// Its figure, in the same unit.
    pub(super) value: f64,
}

/// One thing's figures over all runs.
#[derive(Debug)]
struct Figure {
    of: Of,
    runs: Vec<f64>,
    floor: Option<&'static str>,
    floors: Vec<f64>,
}

/// A line of the JSON.
#[derive(Serialize)]
struct Line<'a> {
    what: &'a str,
    database: Option<&'a str>,
    conditions: &'a str,
    unit: &'a str,
    median: f64,
    runs: &'a [f64],
    floor: Option<f64>,
    floor_is: Option<&'a str>,
    ratio: Option<f64>,
}

/// All figures of a run, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Notes a figure, and says it: a run may be long.
    pub(super) fn add(&mut self, of: Of, value: f64, floor: Option<Floor>) {
        let database = of.database.map_or("", Kind::as_str);
        say(&format!("  {} {database} [{}]: {} {}", of.what, of.conditions, rounded(value), of.unit));
        let at = self.figures.iter().position(|figure| figure.of == of).unwrap_or_else(|| {
            self.figures.push(Figure { of, runs: Vec::new(), floor: None, floors: Vec::new() });
            self.figures.len() - 1
        });
        let figure = &mut self.figures[at];
        figure.runs.push(value);
        if let Some(floor) = floor {
            figure.floor = Some(floor.name);
            figure.floors.push(floor.value);
        }
    }

    /// Writes the table.
    pub(super) fn table(&self, out: &mut Out) -> io::Result<()> {
        let mut table =
            table(&["what", "database", "conditions", "median", "unit", "from … to", "floor", "ratio"]);
        for figure in &self.figures {
            let line = figure.line();
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            let spread = match line.runs {
                [] | [_] => String::new(),
                runs => {
                    let (least, most) = ends(runs);
                    format!("{} … {}", rounded(least), rounded(most))
                }
            };
            let floor = line.floor.zip(line.floor_is);
            table.add_row(vec![
                Cell::new(line.what),
                Cell::new(line.database.unwrap_or("")),
                Cell::new(line.conditions),
                right(rounded(line.median)),
                Cell::new(line.unit),
                Cell::new(spread),
                Cell::new(floor.map_or_else(String::new, |(floor, is)| format!("{is}: {}", rounded(floor)))),
                right(line.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"))),
            ]);
        }
        out.line(&table.to_string())
    }

    /// Returns the lines of the JSON.
    pub(super) fn json(&self) -> Value {
        json!(self.figures.iter().map(Figure::line).collect::<Vec<_>>())
    }
}

impl Figure {
    fn line(&self) -> Line<'_> {
        // A process may be so short that the clock of the system gives it no CPU time at all.
        let held = self.runs.iter().zip(&self.floors).filter(|(_, floor)| **floor != 0.0);
        let ratios: Vec<f64> = held.map(|(value, floor)| value / floor).collect();
        let known = |values: &[f64]| (!values.is_empty()).then(|| median(values));
        Line {
            what: &self.of.what,
            database: self.of.database.map(Kind::as_str),
            conditions: &self.of.conditions,
            unit: self.of.unit,
            median: median(&self.runs),
            runs: &self.runs,
            floor: known(&self.floors),
            floor_is: self.floor,
            ratio: known(&ratios),
        }
    }
}

/// The value in the middle; of an even number the mean of the two there.
pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this part of the others lies, between two neighbours in proportion.
pub(super) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = part * last as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

fn ends(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &value| (least.min(value), most.max(value)))
}

/// Returns a figure with as many digits as mean something.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => number(value.round() as i64),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Says what machine this is.
pub(super) fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| -> Option<String> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory = memory.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let mut machine = BTreeMap::new();
    machine.insert("cores", json!(std::thread::available_parallelism().map_or(0, usize::from)));
    machine.insert("cpu", json!(field(&read("/proc/cpuinfo"), "model name")));
    machine.insert("memory_mb", json!(memory.map(|kib| kib / 1024)));
    machine.insert("kernel", json!(read("/proc/sys/kernel/osrelease").trim()));
    // Work of others in the last minute, as the run began: figures of a busy machine say little.
    machine.insert("load", json!(read("/proc/loadavg").split(' ').next()));
    json!(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(conditions: &str) -> Of {
        Of {
            what: "drain".to_owned(),
            database: Some(Kind::Sqlite),
            conditions: conditions.to_owned(),
            unit: "jobs/s",
        }
    }

    #[test]
    fn the_ratio_is_that_of_the_run_in_the_middle_and_not_of_the_medians() {
        let mut report = Report::default();
        for (value, floor) in [(10.0, 20.0), (9.0, 10.0), (30.0, 40.0)] {
            report.add(of("a"), value, Some(Floor { name: "bare loop", value: floor }));
        }
        let line = &report.json()[0];
        assert_eq!(
            (&line["median"], &line["floor"], &line["ratio"]),
            (&json!(10.0), &json!(20.0), &json!(0.75))
        );
        assert_eq!((&line["runs"], &line["floor_is"]), (&json!([10.0, 9.0, 30.0]), &json!("bare loop")));
    }

    #[test]
    fn a_floor_of_nothing_gives_no_ratio() {
        let mut report = Report::default();
        let mut ratio = |floor: f64| {
            report.add(of("a"), 3.0, Some(Floor { name: "bare loop", value: floor }));
            report.json()[0]["ratio"].clone()
        };
        assert_eq!((ratio(0.0), ratio(2.0)), (Value::Null, json!(1.5)));
    }

    #[test]
    fn figures_of_other_conditions_stand_apart() {
        let mut report = Report::default();
        report.add(of("a"), 1.0, None);
        report.add(of("b"), 2.0, None);
        assert_eq!(report.json().as_array().map(Vec::len), Some(2));
        assert_eq!(report.json()[1]["ratio"], Value::Null);
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        let near = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-9, "{value}");
        near(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        near(quantile(&[1.0, 2.0, 3.0], 1.0), 3.0);
        near(quantile(&(0..=100).map(f64::from).collect::<Vec<_>>(), 0.99), 99.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn figures_have_as_many_digits_as_mean_something() {
        let texts = [12_345.6, 12.34, 1.234, 0.12345].map(rounded);
        assert_eq!(texts, ["12,346", "12.3", "1.23", "0.1235"]);
    }
}
