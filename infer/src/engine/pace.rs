//! What steps cost, by the clock.

use std::time::Duration;

use super::Limits;

/// Moving averages, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// A step that only generates, a token of each sequence.
    generate: Option<f64>,
    /// A position of a prompt.
    row: Option<f64>,
    /// A guess that a step checks.
    check: Option<f64>,
    /// A step of the model that guesses.
    draft: Option<f64>,
}

/// What a step computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// Sequences that generate.
    pub n_generating: usize,
    /// Positions of prompts.
    pub n_prompt: usize,
    /// Guesses that were checked.
    pub n_guessed: usize,
}

/// Positions of a prompt in a step, at least, and in the first one.
const MIN_ROWS: usize = 4;
const FIRST_ROWS: usize = 32;

/// How fast the averages follow.
const WEIGHT: f64 = 0.2;

/// The same where what is followed cannot be told from the rest of a step.
const SLOW_WEIGHT: f64 = 0.02;

/// What a step counts for, at most, as a multiple of what was expected of it: it may be longer for reasons of the machine.
const MAX_LEAP: f64 = 2.0;

/// What a guess costs as a share of a step, at most and if it is not known. It cannot be more than 1, and what never is tried
/// because it was found dear once would never be found cheap again.
const MAX_COST: f64 = 0.8;
const FIRST_COST: f64 = 0.5;

fn follow(average: &mut Option<f64>, x: f64) {
    *average = Some(average.map_or(x, |average| average + WEIGHT * (x - average)));
}

impl Pace {
    /// Positions of prompts that a step may take beside so many sequences that generate.
    pub fn prompt_rows(&self, n_generating: usize, limits: &Limits) -> usize {
        let time = match (n_generating, self.generate) {
            (0, _) => limits.step_time.as_secs_f64(),
            (_, Some(generate)) => generate * limits.stall,
            (_, None) => 0.0,
        };
        let n = self.row.map_or(FIRST_ROWS, |row| (time / row) as usize);
        n.clamp(MIN_ROWS, limits.n_rows.max(MIN_ROWS))
    }

    /// What a guess costs, as a share of what a sequence's token does in a step of so many sequences.
    pub fn guess_cost(&self, n_generating: usize, has_draft: bool) -> f64 {
        let Some(token) = self.generate.map(|generate| generate / n_generating.max(1) as f64) else {
            return FIRST_COST;
        };
        let draft = if has_draft { self.draft.unwrap_or(0.0) / n_generating.max(1) as f64 } else { 0.0 };
        match self.guess() {
            Some(guess) => ((guess + draft) / token).min(MAX_COST),
            None => FIRST_COST,
        }
    }

    /// How long a guess takes to check: as a position of a prompt, until guesses alone were timed.
    fn guess(&self) -> Option<f64> {
        self.check.or(self.row)
    }

    /// How long a step is to take, if all its parts have been seen.
    fn expected(&self, rows: Rows) -> Option<f64> {
        let part = |n: usize, cost: Option<f64>| if n == 0 { Some(0.0) } else { Some(n as f64 * cost?) };
        let generate = part(usize::from(rows.n_generating > 0), self.generate)?;
        Some(generate + part(rows.n_prompt, self.row)? + part(rows.n_guessed, self.guess())?)
    }

    /// Notes how long a step took.
    pub fn note(&mut self, rows: Rows, time: Duration) {
        let most = self.expected(rows).map_or(f64::INFINITY, |expected| MAX_LEAP * expected);
        let time = time.as_secs_f64().min(most);
        let Rows { n_generating, n_prompt, n_guessed } = rows;
        if n_generating > 0 && n_prompt + n_guessed > 0 {
            // Where prompts never stop coming, this is all there is to learn from.
            let others =
                self.row.unwrap_or(0.0) * n_prompt as f64 + self.guess().unwrap_or(0.0) * n_guessed as f64;
            match self.generate {
                None => {
                    self.generate = Some((time - others).max(time * 0.1));
                    return;
                }
                // Without a cost of the prompt's rows, nothing can be told of the rest.
                Some(ref mut generate) if n_prompt > 0 && self.row.is_some() => {
                    *generate += SLOW_WEIGHT * ((time - others).max(time * 0.1) - *generate);
                }
                Some(_) => {}
            }
        }
        let generate = self.generate.filter(|_| n_generating > 0);
        if n_prompt == 0 && n_guessed == 0 {
            follow(&mut self.generate, time);
        } else if n_prompt == 0 {
            if let Some(generate) = generate {
                follow(&mut self.check, (time - generate).max(0.0) / n_guessed as f64);
            }
        } else if n_prompt >= MIN_ROWS {
            let own = generate.unwrap_or(0.0) + self.guess().unwrap_or(0.0) * n_guessed as f64;
            // Of a step that was faster than one without it, at least something.
            follow(&mut self.row, (time - own).max(time * 0.1) / n_prompt as f64);
        }
    }

    /// Notes how long a step of the model that guesses took.
    pub fn note_draft(&mut self, time: Duration) {
        let most = self.draft.map_or(f64::INFINITY, |draft| MAX_LEAP * draft);
        follow(&mut self.draft, time.as_secs_f64().min(most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_that_never_stop_coming_are_not_read_ever_more_slowly() {
        let limits = Limits::default();
        let mut pace = Pace::default();
        // A position of a prompt takes a millisecond, a step that generates twenty.
        let step = |pace: &mut Pace, n_generating: usize| {
            let n_prompt = pace.prompt_rows(n_generating, &limits);
            let ms = n_prompt as u64 + if n_generating > 0 { 20 } else { 0 };
            pace.note(Rows { n_generating, n_prompt, n_guessed: 0 }, Duration::from_millis(ms));
            n_prompt
        };
        step(&mut pace, 0);
        for _ in 0..1000 {
            step(&mut pace, 1);
        }
        let n = step(&mut pace, 1);
        assert!((15..=60).contains(&n), "{n} rows beside a step of the time of 20");
    }

    #[test]
    fn guesses_of_unknown_cost_are_not_told_of_the_prompt() {
        let mut pace = Pace { generate: Some(0.020), row: Some(0.001), ..Pace::default() };
        let rows = Rows { n_generating: 1, n_prompt: MIN_ROWS, n_guessed: 2 * MIN_ROWS };
        pace.note(rows, Duration::from_millis(20 + 3 * MIN_ROWS as u64));
        for (found, expected) in [(pace.row, 0.001), (pace.generate, 0.020)] {
            assert!(found.is_some_and(|found| (found - expected).abs() < 1e-9), "{found:?} for {expected}");
        }
    }

    #[test]
    fn a_step_that_the_machine_held_up_changes_little() {
        let limits = Limits::default();
        let mut pace = Pace::default();
        let mut step = |n_prompt: usize, ms: u64| {
            pace.note(Rows { n_generating: 4, n_prompt, n_guessed: 0 }, Duration::from_millis(ms));
            pace.prompt_rows(4, &limits)
        };
        (0..50).for_each(|_| _ = step(0, 10));
        let n = (0..50).map(|_| step(10, 20)).last().expect("a number");
        let after = step(10, 400);
        assert!(
            after < n && after * 3 >= n * 2,
            "{n} rows before and {after} after a step of the time of 20"
        );
        // Guesses of which no step has told the cost change nothing of this.
        let mut guessing = Pace { generate: Some(0.01), row: Some(0.001), ..Pace::default() };
        guessing.note(Rows { n_generating: 4, n_prompt: 10, n_guessed: 4 }, Duration::from_millis(400));
        let n = guessing.prompt_rows(4, &limits);
        assert!((6..=10).contains(&n), "{n} rows after a step of the time of 17 with guesses");
        let ms = Duration::from_millis;
        [5, 400].into_iter().for_each(|time| guessing.note_draft(ms(time)));
        assert!(guessing.draft.is_some_and(|draft| draft < 0.007), "{:?}", guessing.draft);
        // If it stays so, they follow.
        let n = (0..50).map(|_| step(10, 200)).last().expect("a number");
        assert_eq!(n, MIN_ROWS);
    }

    #[test]
    fn guesses_that_once_cost_nothing_may_cost_something_later() {
        let ms = Duration::from_millis;
        let mut pace = Pace::default();
        let rows = |n_guessed| Rows { n_generating: 1, n_prompt: 0, n_guessed };
        pace.note(rows(0), ms(100));
        pace.note(rows(4), ms(99));
        assert_eq!(pace.guess_cost(1, false), 0.0);
        (0..100).for_each(|_| pace.note(rows(4), ms(160)));
        assert!((pace.guess_cost(1, false) - 0.15).abs() < 1e-3, "{}", pace.guess_cost(1, false));
    }

    #[test]
    fn guesses_cost_what_steps_with_them_take_longer() {
        let ms = Duration::from_millis;
        let mut pace = Pace::default();
        assert_eq!(pace.guess_cost(1, false), FIRST_COST);
        let rows = |n_generating, n_guessed| Rows { n_generating, n_prompt: 0, n_guessed };
        pace.note(rows(1, 0), ms(100));
        pace.note(rows(1, 4), ms(140));
        assert!((pace.guess_cost(1, false) - 0.1).abs() < 1e-9);
        // Beside another sequence, a step gives two tokens for its time.
        assert!((pace.guess_cost(2, false) - 0.2).abs() < 1e-9);
        pace.note_draft(ms(20));
        assert!((pace.guess_cost(1, true) - 0.3).abs() < 1e-9);
        assert_eq!(pace.guess_cost(100, false), MAX_COST);
    }
}
