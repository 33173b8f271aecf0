//! What a run has measured as one page: its tables, its plots, and the machine that it ran on. It loads nothing.

use std::fmt::Write;

use crate::host::Host;
use crate::picture::escaped;
use crate::table::Table;

/// What one tier has to show.
#[derive(Debug, Default)]
pub(crate) struct Section {
    title: String,
    note: String,
    facts: Vec<(String, String)>,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Table(String, Table),
    /// An SVG element.
    Picture(String),
    Note(String),
}

impl Section {
    pub(crate) fn new(title: &str, note: &str) -> Section {
        Section { title: title.to_owned(), note: note.to_owned(), ..Section::default() }
    }

    /// Prints a table under a heading, and keeps it.
    pub(crate) fn table(&mut self, heading: &str, table: Table) {
        table.print(heading);
        self.parts.push(Part::Table(heading.to_owned(), table));
    }

    /// What the tier has found out about the machine, which belongs beside what is known of it.
    pub(crate) fn fact(&mut self, what: &str, value: String) {
        self.facts.push((what.to_owned(), value));
    }

    pub(crate) fn picture(&mut self, svg: String) {
        self.parts.push(Part::Picture(svg));
    }

    /// Prints what is to be known of the last table, and keeps it.
    pub(crate) fn note(&mut self, text: &str) {
        println!("\n{text}");
        self.parts.push(Part::Note(text.to_owned()));
    }
}

/// Plain, and as well in the dark and on paper. Pictures have a white ground of their own.
const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 15px/1.45 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.6rem 0 1.4rem; font-size: 13px; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #8886; text-align: left; }
th { overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.ours td { font-weight: 600; }
svg { max-width: 100%; height: auto; display: block; margin: 0.6rem 0; }
pre { white-space: pre-wrap; font: inherit; }
@media print {
  body { max-width: none; margin: 0; font-size: 11px; }
  table { font-size: 9px; }
  svg, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
";

/// The page.
pub(crate) fn html(host: &Host, sections: &[Section]) -> String {
    let tiers: Vec<&str> = sections.iter().map(|section| section.title.as_str()).collect();
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Dormouse: benchmark</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Dormouse and its peers</h1>\n\
         <p>Medians of alternating runs: every contender had its turn in each round, on the same data. This run \
         measured: {}. Nothing here is of another run.</p>\n<h2>The machine</h2>\n<table>\n",
        escaped(&tiers.join(", "))
    );
    let measured =
        sections.iter().flat_map(|section| &section.facts).map(|(what, value)| (what.as_str(), value.clone()));
    for (what, value) in host.facts().chain(measured) {
        let _ = writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escaped(what), escaped(&value));
    }
    page.push_str("</table>\n");
    for section in sections {
        let _ =
            writeln!(page, "<section>\n<h2>{}</h2>\n<pre>{}</pre>", escaped(&section.title), escaped(&section.note));
        for part in &section.parts {
            match part {
                Part::Table(heading, table) => {
                    let _ = writeln!(page, "<h3>{}</h3>\n{}", escaped(heading), table.html());
                }
                Part::Picture(svg) => page.push_str(svg),
                Part::Note(text) => {
                    let _ = writeln!(page, "<p>{}</p>", escaped(text));
                }
            }
        }
        page.push_str("</section>\n");
    }
    page.push_str("</body>\n</html>\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot;

    #[test]
    fn the_page_has_everything_and_loads_nothing() {
        let mut section = Section::new("Files", "Packed & unpacked.");
        let mut table = Table::new(&["contender", "MiB/s"]);
        table.row(vec!["dormouse <auto>".to_owned(), "17".to_owned()]);
        section.table("compile", table);
        section.picture(plot::bars("pack", "MiB/s", &[("dormouse".to_owned(), 17.0)]));
        section.note("A note.");
        section.fact("copies of <memory>", "17 MiB/s".to_owned());
        let page = html(&Host::default(), &[section]);
        assert_eq!(page.matches("<h3>compile</h3>").count(), 1);
        assert!(page.contains("<td>dormouse &lt;auto&gt;</td><td class=\"number\">17</td>"), "{page}");
        assert!(page.contains("Packed &amp; unpacked.") && page.contains("<p>A note.</p>"));
        assert_eq!(page.matches("<svg").count(), 1);
        assert!(page.contains("<th>copies of &lt;memory&gt;</th><td>17 MiB/s</td>"), "{page}");
        for loaded in ["<script", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(loaded), "{loaded}");
        }
        // The name of the SVG format is no address that is asked.
        assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
    }
}
