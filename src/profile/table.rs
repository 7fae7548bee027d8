//! What was recorded, summed up for people.

use std::fmt::Write;

use super::recorder::{LAYER, Phase, Profile, Totals};

/// The table, without a last line break.
pub fn render(profile: &Profile) -> String {
    let mut text = format!("profile of {}\n", duration(profile.wall));
    for phase in &profile.phases {
        section(&mut text, phase, profile);
    }
    layers(&mut text, &profile.phases);
    let inside: u64 = profile.phases.iter().map(|phase| phase.total).sum();
    let outside = profile.wall.saturating_sub(inside);
    let part = |ns: u64| format!("{} ({:.1} %)", duration(ns), percent(ns, profile.wall));
    let _ =
        write!(text, "outside of these: {}; recording all this: {}", part(outside), part(profile.recording));
    if profile.n_cut > 0 {
        let _ = write!(
            text,
            "\nthe trace has the first {} spans; {} more are counted above, but not in it",
            profile.events.len(),
            profile.n_cut
        );
    }
    text
}

/// A phase with its kinds of operations, those that took most first.
fn section(text: &mut String, phase: &Phase, profile: &Profile) {
    let name = if phase.name.is_empty() { "in no phase" } else { &phase.name };
    let share = percent(phase.total, profile.wall);
    let each = duration(phase.total / phase.n.max(1));
    let times = if phase.n > 1 { format!("{} x {each} = ", phase.n) } else { String::new() };
    let _ = writeln!(text, "\n{name}: {times}{}, {share:.1} % of all", duration(phase.total));
    let mut kinds: Vec<(&str, &Totals)> = profile
        .kinds
        .iter()
        .zip(&phase.kinds)
        .filter(|(_, totals)| totals.n > 0)
        .map(|(kind, totals)| (if kind == LAYER { "layer, besides these" } else { kind.as_str() }, totals))
        .collect();
    if kinds.is_empty() {
        return;
    }
    kinds.sort_by_key(|(_, totals)| std::cmp::Reverse(totals.own));
    let _ = writeln!(
        text,
        "  {:<26} {:>8} {:>10} {:>10} {:>6} {:>10} {:>10} {:>8} {:>7}",
        "operation", "calls", "total ms", "own ms", "%", "µs a call", "µs each", "GFLOP/s", "GB/s"
    );
    for (kind, totals) in kinds {
        // Of as many nanoseconds: thousands of millions a second.
        let rate = |n: u64| match n {
            0 => "-".to_owned(),
            n => format!("{:.1}", n as f64 / totals.total.max(1) as f64),
        };
        let _ = writeln!(
            text,
            "  {kind:<26} {:>8} {:>10.2} {:>10.2} {:>6.1} {:>10.2} {:>10.1} {:>8} {:>7}",
            totals.n,
            totals.total as f64 / 1e6,
            totals.own as f64 / 1e6,
            percent(totals.own, phase.total),
            totals.own as f64 / 1e3 / totals.n as f64,
            totals.own as f64 / 1e3 / phase.n.max(1) as f64,
            rate(totals.flops),
            rate(totals.bytes),
        );
    }
    let _ = writeln!(
        text,
        "  {:<26} {:>8} {:>10} {:>10.2} {:>6.1} {:>10} {:>10.1}",
        "rest",
        "",
        "",
        phase.rest as f64 / 1e6,
        percent(phase.rest, phase.total),
        "",
        phase.rest as f64 / 1e3 / phase.n.max(1) as f64
    );
}

/// Milliseconds of each layer in each phase that has layers.
fn layers(text: &mut String, phases: &[Phase]) {
    let phases: Vec<&Phase> = phases.iter().filter(|phase| !phase.layers.is_empty()).collect();
    let Some(n) = phases.iter().map(|phase| phase.layers.len()).max() else { return };
    let row = |text: &mut String, name: &str, cell: &dyn Fn(&Phase) -> String| {
        let cells: String = phases.iter().map(|phase| format!(" {:>12}", cell(phase))).collect();
        let _ = writeln!(text, "{name:<12}{cells}");
    };
    let _ = writeln!(text);
    row(text, "layer, ms", &|phase| phase.name.chars().take(12).collect());
    for layer in 0..n {
        let cell =
            |phase: &Phase| format!("{:.2}", phase.layers.get(layer).copied().unwrap_or(0) as f64 / 1e6);
        row(text, &layer.to_string(), &cell);
    }
    row(text, "none", &|phase| {
        let inside: u64 = phase.layers.iter().sum();
        format!("{:.2}", phase.total.saturating_sub(inside) as f64 / 1e6)
    });
    let _ = writeln!(text);
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// With a unit in which the number has some digits before the point.
fn duration(ns: u64) -> String {
    match ns as f64 {
        ns if ns >= 1e9 => format!("{:.2} s", ns / 1e9),
        ns if ns >= 1e6 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.1} µs", ns / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_shares_and_times_follow_from_the_totals() {
        let product = Totals { n: 4, total: 2_000_000, own: 1_500_000, flops: 8_000_000, bytes: 1_000_000 };
        let token = Phase {
            name: "token".into(),
            n: 2,
            total: 3_000_000,
            rest: 500_000,
            kinds: vec![Totals::default(), product],
            layers: vec![0, 900_000],
        };
        let profile = Profile {
            wall: 4_000_000,
            recording: 40_000,
            phases: vec![token],
            events: Vec::new(),
            n_cut: 7,
            kinds: vec!["never".into(), "qkv".into()],
        };
        let text = render(&profile);
        let cells = |name: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.trim_start().starts_with(name)).expect(name);
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(cells("qkv"), ["qkv", "4", "2.00", "1.50", "50.0", "375.00", "750.0", "4.0", "0.5"]);
        assert_eq!(cells("rest"), ["rest", "0.50", "16.7", "250.0"]);
        assert_eq!(cells("1 "), ["1", "0.90"]);
        assert_eq!(cells("none"), ["none", "2.10"]);
        assert!(text.contains("token: 2 x 1.50 ms = 3.00 ms, 75.0 % of all"), "{text}");
        assert!(
            text.contains("outside of these: 1.00 ms (25.0 %); recording all this: 40.0 µs (1.0 %)"),
            "{text}"
        );
        assert!(text.contains("7 more are counted above") && !text.contains("never"), "{text}");
    }
}
