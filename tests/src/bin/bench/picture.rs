//! A picture of where the time goes: a bar for each contender, with a segment for each stage.

use std::fmt::Write;

use crate::timeline::Stage;

/// A contender with the seconds of its stages.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) stages: Vec<(Stage, f64)>,
}

impl Bar {
    fn sum(&self) -> f64 {
        self.of(Stage::Prepare..=Stage::Reread)
    }

    /// The seconds of these stages.
    fn of(&self, stages: std::ops::RangeInclusive<Stage>) -> f64 {
        self.stages.iter().filter(|(stage, _)| stages.contains(stage)).fold(0.0, |sum, (_, seconds)| sum + seconds)
    }
}

const WIDTH: f64 = 960.0;
/// Where the bars begin, after the contenders' names, and where the longest one ends, before its sum.
const LEFT: f64 = 230.0;
const RIGHT: f64 = 800.0;
const TOP: f64 = 64.0;
const ROW: f64 = 34.0;
const BAR: f64 = 20.0;
/// The keys, in columns.
const KEY_ROW: f64 = 20.0;
const KEY_COLUMNS: usize = 3;

/// Blue for what saves, grey for the way down, orange and green for the way up, so that what a contender does not do is
/// seen at once; light and dark enough to be told apart in grey as well.
fn colour(stage: Stage) -> &'static str {
    match stage {
        Stage::Prepare => "#c6dbef",
        Stage::LoadB => "#9ecae1",
        Stage::EnterB => "#6baed6",
        Stage::ReadyB => "#3182bd",
        Stage::Write => "#08519c",
        Stage::PowerOff => "#969696",
        Stage::Firmware => "#d9d9d9",
        Stage::BootC => "#e6550d",
        Stage::LoadD => "#fd8d3c",
        Stage::BootD => "#fdbe85",
        Stage::ReadyD => "#c7e9c0",
        Stage::Read => "#238b45",
        Stage::Wake => "#74c476",
        Stage::Reread => "#9e9ac8",
    }
}

/// The picture as an SVG document, with the figures as text, in lines that are not too long for a source.
pub(crate) fn svg(title: &str, bars: &[Bar]) -> String {
    let longest = bars.iter().map(Bar::sum).fold(0.0_f64, f64::max).max(f64::MIN_POSITIVE);
    let scale = (RIGHT - LEFT) / longest;
    let used = |stage: &Stage| bars.iter().any(|bar| bar.stages.iter().any(|(other, _)| other == stage));
    let keys: Vec<Stage> = Stage::ALL.into_iter().filter(used).collect();
    // Few of either.
    let (rows, key_rows) = (bars.len() as f64, keys.len().div_ceil(KEY_COLUMNS) as f64);
    let bottom = TOP + rows * ROW;
    let height = bottom + 34.0 + key_rows * KEY_ROW + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\"\n \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let mut text = |x: f64, y: f64, more: &str, words: &str| {
        let words = escaped(words);
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"#202020\"{more}>\n{words}</text>");
    };
    text(12.0, 24.0, " font-size=\"16\"", title);
    text(12.0, 46.0, "", "Seconds: command to power-off + power-on to first sign of life + files read again = sum");
    let mut shapes = String::new();
    let step = tick(longest);
    for seconds in (0..).map(|number| f64::from(number) * step).take_while(|seconds| *seconds <= longest) {
        let x = LEFT + seconds * scale;
        let _ = writeln!(shapes, "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#e0e0e0\"/>");
        text(x, bottom + 16.0, " text-anchor=\"middle\"", &format!("{seconds}"));
    }
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + row as f64 * ROW + (ROW - BAR) / 2.0;
        text(12.0, y + BAR - 6.0, "", &bar.name);
        let mut x = LEFT;
        for (stage, seconds) in &bar.stages {
            let width = seconds * scale;
            let _ = writeln!(
                shapes,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{}\">\n\
                 <title>{}: {seconds:.2} s</title></rect>",
                colour(*stage),
                escaped(stage.name()),
            );
            x += width;
            if *stage == Stage::PowerOff {
                // The power is off.
                let _ = writeln!(shapes, "<path d=\"M{x:.1} {:.1}v{}\" stroke=\"#000000\"/>", y - 4.0, BAR + 8.0);
            }
        }
        text(x + 6.0, y + BAR - 6.0, "", &format!("{:.1}", bar.sum()));
        let off = bar.of(Stage::Prepare..=Stage::PowerOff);
        let on = bar.of(Stage::Firmware..=Stage::Wake);
        let reread = bar.of(Stage::Reread..=Stage::Reread);
        text(x + 52.0, y + BAR - 6.0, " font-size=\"10\"", &format!("{off:.1}+{on:.1}+{reread:.1}"));
    }
    for (number, stage) in keys.iter().enumerate() {
        let x = 12.0 + (number % KEY_COLUMNS) as f64 * (WIDTH / KEY_COLUMNS as f64);
        let y = bottom + 34.0 + (number / KEY_COLUMNS) as f64 * KEY_ROW;
        let _ = writeln!(
            shapes,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            colour(*stage)
        );
        text(x + 18.0, y + 11.0, "", stage.name());
    }
    svg.push_str(&shapes);
    svg.push_str("</svg>\n");
    svg
}

/// The distance of the lines that show the seconds: at most ten of them, at round numbers.
pub(crate) fn tick(longest: f64) -> f64 {
    let mut step = 1.0;
    for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
        if longest / step <= 10.0 || step > 1e6 {
            break;
        }
        step *= factor;
    }
    step
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars() -> Vec<Bar> {
        vec![
            Bar {
                name: "dormouse".to_owned(),
                stages: vec![
                    (Stage::Prepare, 1.0),
                    (Stage::Write, 2.0),
                    (Stage::PowerOff, 0.5),
                    (Stage::Firmware, 1.0),
                    (Stage::BootD, 1.5),
                ],
            },
            Bar { name: "kernel <lzo> & more".to_owned(), stages: vec![(Stage::Prepare, 3.0), (Stage::Reread, 9.0)] },
        ]
    }

    #[test]
    fn a_bar_is_as_long_as_its_time() {
        let svg = svg("1G", &bars());
        // The longest one has 12 s, in 570 units.
        assert!(svg.contains("width=\"142.5\" height=\"20\" fill=\"#c6dbef\""), "{svg}");
        assert!(svg.contains("<title>memory is written: 2.00 s</title>"), "{svg}");
        assert!(svg.contains("3.5+2.5+0.0"), "{svg}");
        assert!(svg.contains("M396.2 67.0v28"), "the power-off is not where 3.5 s are: {svg}");
    }

    #[test]
    fn it_is_a_document_of_its_own() {
        let svg = svg("a title", &bars());
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("kernel &lt;lzo&gt; &amp; more") && !svg.contains("<lzo>"));
        assert!(!svg.contains("<script") && !svg.contains("href"));
        // Only stages that there are have a key.
        assert!(svg.contains("\nfiles are read again</text>") && !svg.contains("\nkernel C boots</text>"), "{svg}");
    }

    #[test]
    fn nothing_measured_is_a_picture_too() {
        assert!(svg("nothing", &[]).ends_with("</svg>\n"));
    }

    #[test]
    fn seconds_are_shown_at_round_numbers() {
        let steps: Vec<f64> = [0.0, 9.0, 12.0, 31.0, 55.0, 300.0].into_iter().map(tick).collect();
        assert_eq!(steps, [1.0, 1.0, 2.0, 5.0, 10.0, 50.0]);
    }
}
