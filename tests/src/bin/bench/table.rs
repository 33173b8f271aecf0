//! Results: medians, Markdown tables for people, CSV files for programs.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::picture::escaped;

/// A table whose rows have as many cells as its header.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&'static str]) -> Table {
        Table { header: header.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Prints it as Markdown, columns aligned, under a heading.
    pub(crate) fn print(&self, heading: &str) {
        let all =
            || std::iter::once(self.header.iter().map(|cell| (*cell).to_owned()).collect()).chain(self.rows.clone());
        let width = |column: usize| {
            all().filter_map(|row: Vec<String>| row.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        println!("\n### {heading}\n");
        for (number, row) in all().enumerate() {
            let cells: Vec<String> =
                row.iter()
                    .zip(&widths)
                    .map(|(cell, width)| {
                        if number > 0 && is_number(cell) {
                            format!("{cell:>width$}")
                        } else {
                            format!("{cell:<width$}")
                        }
                    })
                    .collect();
            println!("| {} |", cells.join(" | "));
            if number == 0 {
                println!("| {} |", widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join(" | "));
            }
        }
    }

    /// The same for a page.
    pub(crate) fn html(&self) -> String {
        let mut html = "<table>\n<tr>".to_owned();
        for cell in &self.header {
            let _ = write!(html, "<th>{}</th>", escaped(cell));
        }
        html.push_str("</tr>\n");
        for row in &self.rows {
            let is_ours = row.iter().any(|cell| cell.starts_with("dormouse"));
            html.push_str(if is_ours { "<tr class=\"ours\">" } else { "<tr>" });
            for cell in row {
                let class = if is_number(cell) { " class=\"number\"" } else { "" };
                let _ = write!(html, "<td{class}>{}</td>", escaped(cell));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</table>\n");
        html
    }

    /// Writes it as CSV. No cell has a comma or a quote in it.
    pub(crate) fn write_csv(&self, path: &Path) -> Result<()> {
        let mut text = self.header.join(",");
        text.push('\n');
        for row in &self.rows {
            text.push_str(&row.join(","));
            text.push('\n');
        }
        std::fs::write(path, text).with_context(|| format!("{}: cannot be written", path.display()))
    }
}

fn is_number(cell: &str) -> bool {
    cell.starts_with(|first: char| first.is_ascii_digit())
}

/// The least and the most of what `value` finds in each of `runs`; 0 of nothing.
pub(crate) fn range_of<T>(runs: &[T], value: impl Fn(&T) -> f64) -> (f64, f64) {
    let values = || runs.iter().map(&value);
    let least = values().reduce(f64::min).unwrap_or(0.0);
    (least, values().reduce(f64::max).unwrap_or(0.0))
}

/// The median of what `value` finds in each of `runs`.
pub(crate) fn median_of<T>(runs: &[T], value: impl Fn(&T) -> f64) -> f64 {
    median(&runs.iter().map(value).collect::<Vec<_>>())
}

/// The median; the mean of the two in the middle where their number is even. 0 of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => 0.0,
        Some(upper) if sorted.len() % 2 == 1 => *upper,
        Some(upper) => f64::midpoint(sorted[middle - 1], *upper),
    }
}
