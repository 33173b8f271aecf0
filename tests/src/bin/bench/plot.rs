//! Plots as SVG: bars for contenders, lines for what grows.

use std::fmt::Write;

use crate::picture::{escaped, tick};

const WIDTH: f64 = 960.0;
/// Where bars begin, after the names.
const LEFT: f64 = 290.0;
const RIGHT: f64 = 860.0;
const TOP: f64 = 40.0;
const ROW: f64 = 22.0;

/// Lines, told apart in grey as well.
const COLOURS: [&str; 4] = ["#08519c", "#e6550d", "#74c476", "#636363"];

/// Ours is blue, a bound orange, everybody else grey.
fn colour(name: &str) -> &'static str {
    match name {
        name if name.starts_with("dormouse") && name.ends_with("sealed") => "#6baed6",
        name if name.starts_with("dormouse") => "#08519c",
        name if name.starts_with("codec alone") || name == "memcpy" => "#e6550d",
        _ => "#969696",
    }
}

fn begin(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\"\n \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"14\" fill=\"#202020\">{}</text>\n",
        escaped(title)
    )
}

/// The distance of the lines across a plot up to `highest`, which may be far below 1.
fn step_to(highest: f64) -> f64 {
    let factor = (0..6).map(|power| 10.0_f64.powi(power)).find(|factor| highest * factor >= 10.0);
    factor.map_or(highest, |factor| tick(highest * factor) / factor)
}

/// A number with at most three decimals.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The value that reaches the edge: the longest; or, where that one would leave little room for all others, somewhat
/// more than the second.
fn limit_of(values: &[(String, f64)]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    sorted.sort_by(|one, other| other.total_cmp(one));
    let longest = sorted.first().copied().unwrap_or(0.0);
    let limit = match sorted.get(1) {
        Some(second) if *second > 0.0 && longest > 2.0 * second => 1.2 * second,
        _ => longest,
    };
    limit.max(f64::MIN_POSITIVE)
}

/// A bar for each name, in their order, with its value in `unit`. One that is far longer than all others is cut, with a
/// gap before its end.
pub(crate) fn bars(title: &str, unit: &str, values: &[(String, f64)]) -> String {
    let limit = limit_of(values);
    let scale = (RIGHT - LEFT) / limit;
    // Few.
    let mut svg = begin(&format!("{title}, {unit}"), TOP + values.len() as f64 * ROW + 10.0);
    for (row, (name, value)) in values.iter().enumerate() {
        let y = TOP + row as f64 * ROW;
        let width = value.min(limit) * scale;
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{:.1}\" fill=\"#202020\">{}</text>\n\
             <rect class=\"bar\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"16\" fill=\"{}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#202020\">{value:.0}</text>",
            y + 12.0,
            escaped(name),
            colour(name),
            LEFT + width + 6.0,
            y + 12.0,
        );
        if *value > limit {
            let _ = writeln!(
                svg,
                "<path class=\"cut\" d=\"M{:.1} {:.1}l8 -20\" stroke=\"#ffffff\" stroke-width=\"4\"/>",
                RIGHT - 34.0,
                y + 18.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A line for each name through its points, from 0 on in both directions.
pub(crate) fn lines(title: &str, unit: &str, across: &str, series: &[(&str, Vec<(f64, f64)>)]) -> String {
    const BOTTOM: f64 = 250.0;
    const BEGIN: f64 = 60.0;
    let most = |of: fn(&(f64, f64)) -> f64| {
        let all = series.iter().flat_map(|(_, points)| points);
        all.map(of).fold(0.0_f64, f64::max).max(f64::MIN_POSITIVE)
    };
    let (widest, highest) = (most(|point| point.0), most(|point| point.1));
    let x = |value: f64| BEGIN + value / widest * (RIGHT - BEGIN);
    let y = |value: f64| BOTTOM - value / highest * (BOTTOM - TOP - 10.0);
    let mut svg = begin(&format!("{title}: {unit} over {across}"), BOTTOM + 50.0);
    let step = step_to(highest);
    for value in (0..).map(|number| f64::from(number) * step).take_while(|value| *value <= highest) {
        let at = y(value);
        let _ = writeln!(
            svg,
            "<path d=\"M{BEGIN} {at:.1}H{RIGHT}\" stroke=\"#e0e0e0\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#202020\">{}</text>",
            BEGIN - 6.0,
            at + 4.0,
            short(value)
        );
    }
    for (number, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let path: Vec<String> = points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = writeln!(
            svg,
            "<polyline class=\"line\" points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for point in points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}: {}: {:.2}</title></circle>",
                x(point.0),
                y(point.1),
                escaped(name),
                short(point.0),
                point.1
            );
        }
        let key = BEGIN + number as f64 * 200.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{key:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#202020\">{}</text>",
            BOTTOM + 28.0,
            key + 18.0,
            BOTTOM + 39.0,
            escaped(name)
        );
    }
    let mut widths: Vec<f64> = series.iter().flat_map(|(_, points)| points.iter().map(|point| point.0)).collect();
    widths.sort_by(f64::total_cmp);
    widths.dedup();
    for value in widths {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#202020\">{}</text>",
            x(value),
            BOTTOM + 16.0,
            short(value)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_bar_and_the_longest_ends_at_the_edge() {
        let values = [("dormouse auto".to_owned(), 50.0), ("cp & co".to_owned(), 100.0), ("memcpy".to_owned(), 0.0)];
        let svg = bars("pack", "MiB/s", &values);
        assert_eq!(svg.matches("class=\"bar\"").count(), 3);
        assert!(svg.contains(&format!("width=\"{:.1}\" height=\"16\" fill=\"#969696\"", RIGHT - LEFT)), "{svg}");
        assert!(svg.contains("fill=\"#08519c\"") && svg.contains("cp &amp; co"));
    }

    #[test]
    fn a_bar_that_is_far_longer_is_cut_and_says_its_value() {
        let values = [("dormouse auto", 50.0), ("cp", 100.0), ("memcpy", 900.0)];
        let svg = bars("pack", "MiB/s", &values.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!((svg.matches("class=\"bar\"").count(), svg.matches("class=\"cut\"").count()), (3, 1));
        assert!(svg.contains(&format!("width=\"{:.1}\" height=\"16\" fill=\"#e6550d\"", RIGHT - LEFT)), "{svg}");
        assert!(
            svg.contains(&format!("width=\"{:.1}\" height=\"16\" fill=\"#969696\"", (RIGHT - LEFT) / 1.2)),
            "{svg}"
        );
        assert!(svg.contains(">900</text>"), "{svg}");
    }

    #[test]
    fn what_is_small_has_lines_too_and_numbers_are_short() {
        let steps: Vec<String> = [0.6, 0.04, 3.0, 12.0, 300.0].into_iter().map(|most| short(step_to(most))).collect();
        assert_eq!(steps, ["0.1", "0.005", "0.5", "2", "50"]);
        // Nothing at all ends as well.
        let svg = lines("nothing", "seconds", "CPUs", &[("save", vec![(0.0, 0.0)])]);
        assert!(svg.ends_with("</svg>\n"));
        let svg = lines("2 GiB", "seconds", "per cent", &[("save", vec![(37.482_910_156, 0.3)])]);
        assert!(svg.contains(">37.483</text>") && svg.contains(">0.15</text>") && !svg.contains("37.4829"), "{svg}");
    }

    #[test]
    fn every_series_has_a_line_through_its_points() {
        let series = [("save", vec![(1.0, 10.0), (2.0, 5.0)]), ("restore", vec![(1.0, 4.0)])];
        let svg = lines("2 GiB", "seconds", "CPUs", &series);
        assert_eq!(svg.matches("class=\"line\"").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3);
        // The largest value of each direction is at the edge.
        assert!(svg.contains(&format!("cx=\"{RIGHT:.1}\"")) && svg.contains(&format!("cy=\"{:.1}\"", TOP + 10.0)));
    }
}
