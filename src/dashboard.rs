//! The live training dashboard.
//!
//! Fed by burn-train's metric pipeline through [`Screen`]; drawn at most ten times a second on the
//! thread that brings the numbers, so it takes no core of its own. Keys are waited for on a thread of
//! their own, because a step may take long: `q` or Ctrl-C stops after the step and saves, a second one
//! ends at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use burn::train::Interrupter;
use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Row, Table};
use train::Screen;
use train::report::Report;
use train::run::PhaseInfo;

use crate::progress::time;
use crate::stop::{Stop, exit_code};

const FRAME_TIME: Duration = Duration::from_millis(100);

/// Points kept per curve: beyond this, every second one goes, so that memory and drawing stay bounded.
const MAX_POINTS: usize = 2000;

/// The terminal and what is shown on it.
pub struct Dashboard {
    terminal: DefaultTerminal,
    view: View,
    drawn: Instant,
    closed: Arc<AtomicBool>,
    keys: Option<JoinHandle<()>>,
}

/// What is shown; knows no terminal, so that tests can draw it into a buffer.
#[derive(Debug)]
struct View {
    info: PhaseInfo,
    begin: Instant,
    elapsed: Duration,
    phase_step: usize,
    report: Report,
    valid_loss: Option<f64>,
    best_loss: Option<f64>,
    train_curve: Curve,
    valid_curve: Curve,
    stopping: Arc<AtomicBool>,
}

/// A curve of bounded size: each point is the mean of `every` values.
#[derive(Debug, Default)]
struct Curve {
    points: Vec<(f64, f64)>,
    every: usize,
    sum: f64,
    n: usize,
}

impl Curve {
    fn push(&mut self, x: f64, y: f64) {
        self.every = self.every.max(1);
        self.sum += y;
        self.n += 1;
        if self.n < self.every {
            return;
        }
        self.points.push((x, self.sum / self.n as f64));
        (self.sum, self.n) = (0.0, 0);
        if self.points.len() == MAX_POINTS {
            let pairs = self.points.chunks_exact(2);
            self.points = pairs.map(|p| (p[1].0, f64::midpoint(p[0].1, p[1].1))).collect();
            self.every *= 2;
        }
    }
}

impl Dashboard {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// If it cannot be drawn on.
    pub fn open(info: &PhaseInfo, interrupter: Interrupter, stop: Stop) -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        let closed = Arc::new(AtomicBool::new(false));
        let stopping = Arc::new(AtomicBool::new(false));
        let keys = Keys { interrupter, stop, stopping: stopping.clone(), closed: closed.clone() };
        let keys = thread::Builder::new().name("dashboard-keys".into()).spawn(move || keys.wait())?;
        let view = View::new(info.clone(), stopping);
        let mut dashboard = Self { terminal, view, drawn: Instant::now(), closed, keys: Some(keys) };
        dashboard.draw();
        Ok(dashboard)
    }

    fn draw(&mut self) {
        self.drawn = Instant::now();
        let view = &self.view;
        // A frame that cannot be drawn is not worth a training run.
        let _ = self.terminal.draw(|frame| view.draw(frame));
    }

    fn draw_if_due(&mut self, is_last: bool) {
        if is_last || self.drawn.elapsed() >= FRAME_TIME {
            self.draw();
        }
    }
}

/// Waits for keys while the dashboard is open.
struct Keys {
    interrupter: Interrupter,
    stop: Stop,
    stopping: Arc<AtomicBool>,
    closed: Arc<AtomicBool>,
}

impl Keys {
    fn wait(&self) {
        while !self.closed.load(Ordering::Relaxed) {
            if !event::poll(FRAME_TIME).unwrap_or(false) {
                continue;
            }
            if let Ok(Event::Key(key)) = event::read() {
                let ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if key.is_press() && (ctrl_c || key.code == KeyCode::Char('q')) {
                    self.ask_to_stop();
                }
            }
        }
    }

    fn ask_to_stop(&self) {
        if self.stop.key() {
            ratatui::restore();
            std::process::exit(exit_code(signal_hook::consts::SIGINT));
        }
        self.interrupter.stop(Some("key"));
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(keys) = self.keys.take() {
            // It ends within a frame's time; a panic in it has nothing left to tell.
            let _ = keys.join();
        }
        ratatui::restore();
    }
}

impl Screen for Dashboard {
    fn step(&mut self, phase_step: usize, report: &Report) {
        self.view.step(phase_step, report);
        self.draw_if_due(phase_step == self.view.info.steps.1);
    }

    fn evaluation(&mut self, phase_step: usize, loss: f64) {
        self.view.evaluation(phase_step, loss);
        self.draw_if_due(true);
    }
}

impl View {
    fn new(info: PhaseInfo, stopping: Arc<AtomicBool>) -> Self {
        Self {
            phase_step: info.steps.0,
            info,
            begin: Instant::now(),
            elapsed: Duration::ZERO,
            report: Report::default(),
            valid_loss: None,
            best_loss: None,
            train_curve: Curve::default(),
            valid_curve: Curve::default(),
            stopping,
        }
    }

    fn step(&mut self, phase_step: usize, report: &Report) {
        self.phase_step = phase_step;
        self.report = *report;
        self.elapsed = self.begin.elapsed();
        self.train_curve.push(phase_step as f64, report.loss);
    }

    fn evaluation(&mut self, phase_step: usize, loss: f64) {
        self.valid_loss = Some(loss);
        self.best_loss = Some(self.best_loss.map_or(loss, |best| best.min(loss)));
        self.valid_curve.push(phase_step as f64, loss);
    }

    /// Steps of this session, and the time they leave.
    fn seconds_left(&self) -> Option<f64> {
        let (before, steps) = self.info.steps;
        let done = self.phase_step.saturating_sub(before);
        (done > 0)
            .then(|| self.elapsed.as_secs_f64() / done as f64 * steps.saturating_sub(self.phase_step) as f64)
    }

    fn draw(&self, frame: &mut Frame) {
        let rows = Layout::vertical([Constraint::Length(3), Constraint::Fill(1), Constraint::Length(1)]);
        let [top, middle, bottom] = rows.areas(frame.area());
        let [numbers, curves] =
            Layout::horizontal([Constraint::Length(34), Constraint::Fill(1)]).areas(middle);
        self.draw_progress(frame, top);
        self.draw_numbers(frame, numbers);
        self.draw_curves(frame, curves);
        let help = match self.stopping.load(Ordering::Relaxed) {
            true => "stopping after this step and saving; Ctrl-C again ends at once",
            false => "q or Ctrl-C: stop after this step and save",
        };
        frame.render_widget(Paragraph::new(Line::from(help).dim()), bottom);
    }

    fn draw_progress(&self, frame: &mut Frame, area: Rect) {
        let (phase, n_phases) = self.info.phase;
        let steps = self.info.steps.1;
        let left = self.seconds_left().map_or_else(String::new, |s| format!(", {} left", time(s)));
        let gauge = Gauge::default()
            .block(Block::bordered().title(format!(
                " {} - phase {} of {n_phases} ",
                self.info.name,
                phase + 1
            )))
            .gauge_style(Style::new().fg(Color::Cyan))
            .ratio((self.phase_step as f64 / steps.max(1) as f64).clamp(0.0, 1.0))
            .label(format!("step {} of {steps}{left}", self.phase_step));
        frame.render_widget(gauge, area);
    }

    fn draw_numbers(&self, frame: &mut Frame, area: Rect) {
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_owned(),
        };
        let seen = (self.phase_step > self.info.steps.0).then_some(self.report);
        let rows = [
            ("loss", number(seen.map(|r| r.loss), 4)),
            ("perplexity", number(seen.map(|r| r.loss.exp()), 3)),
            ("validation loss", number(self.valid_loss, 4)),
            ("best validation", number(self.best_loss, 4)),
            ("learning rate", seen.map_or("-".into(), |r| format!("{:.2e}", r.lr))),
            ("gradient norm", number(seen.map(|r| r.grad_norm), 3)),
            ("tokens/s", number(seen.map(|r| r.tokens_per_s), 0)),
            ("tokens a step", self.info.tokens_per_step.to_string()),
            ("parameters", self.info.n_params.to_string()),
            ("elapsed", time(self.elapsed.as_secs_f64())),
        ];
        let rows =
            rows.map(|(name, value)| Row::new([Line::from(name).dim(), Line::from(value).right_aligned()]));
        let table = Table::new(rows, [Constraint::Length(16), Constraint::Fill(1)]);
        frame.render_widget(table.block(Block::bordered().title(" numbers ")), area);
    }

    fn draw_curves(&self, frame: &mut Frame, area: Rect) {
        let all = || self.train_curve.points.iter().chain(&self.valid_curve.points);
        let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low < high { (low, high) } else { (0.0, 1.0) };
        let steps = self.info.steps.1 as f64;
        let curve = |name, points, color| {
            Dataset::default()
                .name(name)
                .data(points)
                .marker(Marker::Braille)
                .graph_type(GraphType::Line)
                .fg(color)
        };
        let curves = vec![
            curve("training", &self.train_curve.points[..], Color::Cyan),
            curve("validation", &self.valid_curve.points[..], Color::Yellow),
        ];
        let chart = Chart::new(curves)
            .block(Block::bordered().title(" loss "))
            .x_axis(Axis::default().bounds([0.0, steps]).labels(["0".to_owned(), format!("{steps}")]))
            .y_axis(Axis::default().bounds([low, high]).labels([format!("{low:.2}"), format!("{high:.2}")]));
        frame.render_widget(chart, area);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn info() -> PhaseInfo {
        PhaseInfo { name: "t".into(), phase: (0, 2), steps: (0, 200), n_params: 1234, tokens_per_step: 96 }
    }

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a buffer");
        terminal.draw(|frame| view.draw(frame)).expect("drawn");
        terminal.backend().to_string()
    }

    #[test]
    fn shows_every_number_and_both_curves() {
        let mut view = View::new(info(), Arc::default());
        for step in 1..=100 {
            let loss = 4.0 / step as f64 + 1.0;
            view.step(step, &Report { loss, lr: 3e-4, grad_norm: 0.5, tokens_per_s: 12_345.0 });
        }
        view.evaluation(50, 1.25);
        view.evaluation(100, 1.5);
        let shown = screen(&view, 100, 20);
        for part in [
            "step 100 of 200",
            "left",
            "phase 1 of 2",
            "1.0400",
            "2.829",
            "1.5000",
            "1.2500",
            "3.00e-4",
            "12345",
            "1234",
        ] {
            assert!(shown.contains(part), "`{part}` is not in\n{shown}");
        }
    }

    #[test]
    fn small_and_empty_screens_do_not_panic() {
        let view = View::new(info(), Arc::default());
        for (width, height) in [(1, 1), (10, 3), (40, 8), (200, 60)] {
            screen(&view, width, height);
        }
    }

    #[test]
    fn curves_keep_their_shape_in_bounded_memory() {
        let mut curve = Curve::default();
        (0..100_000).for_each(|i| curve.push(f64::from(i), f64::from(i)));
        assert!(curve.points.len() < MAX_POINTS);
        assert!(curve.points.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1));
        let (x, y) = curve.points[curve.points.len() - 1];
        assert!(x > 99_000.0 && (x - y).abs() < 200.0);
    }
}
