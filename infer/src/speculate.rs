//! Guessing what comes next, so that a model can check several tokens at once instead of giving them one by one.
//!
//! A step that checks a few positions reads the weights once for all of them, as a step of one position does; on most
//! machines that is what takes the time. The model picks its token at each position as it always does, and goes on as long
//! as that is the guess: so what comes out is what would have come out, whatever was guessed (the case of deterministic
//! proposals of Leviathan et al. 2023). Guesses only change how long it takes.
//!
//! [`Lookup`] guesses that a text goes on as it did where its last two tokens stood before (Saxena 2023, "prompt lookup
//! decoding"), and counts how often that was right, by how long the repetition is already: this costs nothing but looking,
//! so where it is never right, nothing is ever checked. [`best_length`] is how many guesses are worth their time.

use std::collections::HashMap;

/// What the text itself says about what comes next.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Where the text went on after two ids, the last time.
    after: HashMap<(u32, u32), usize>,
    /// Ids that have been looked at.
    n_seen: usize,
    place: Option<Place>,
    /// How often a guess was right, by [`Place::class`]: moving averages.
    rates: [f64; N_CLASS],
}

/// A place that the end of the text repeats.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Where the id stands that is the guess.
    at: usize,
    /// How many ids before it equal the last ones.
    n_same: usize,
}

/// Repetitions are told apart up to this length, in classes that double.
const MAX_SAME: usize = 32;
const N_CLASS: usize = 6;

/// How fast the averages follow.
const WEIGHT: f64 = 0.1;

impl Default for Lookup {
    fn default() -> Self {
        // Where nothing is known yet, the longer the better.
        let rates = [0.3, 0.4, 0.6, 0.7, 0.8, 0.9];
        Self { after: HashMap::new(), n_seen: 0, place: None, rates }
    }
}

impl Place {
    /// Of 1, 2, 3 or 4, 5 to 8, 9 to 16 and more ids that are the same.
    fn class(n_same: usize) -> usize {
        (n_same.max(1) - 1).checked_ilog2().map_or(0, |log| log as usize + 1).min(N_CLASS - 1)
    }
}

impl Lookup {
    /// Looks at the ids that are new since the last time: `ids` begins with those.
    pub fn update(&mut self, ids: &[u32]) {
        for end in self.n_seen..ids.len() {
            self.place = self.place.take().and_then(|place| {
                let is_right = ids[place.at] == ids[end];
                let rate = &mut self.rates[Place::class(place.n_same)];
                *rate += WEIGHT * (f64::from(u8::from(is_right)) - *rate);
                is_right.then_some(Place { at: place.at + 1, n_same: place.n_same + 1 })
            });
            if end == 0 {
                continue;
            }
            let before = self.after.insert((ids[end - 1], ids[end]), end + 1);
            if let (None, Some(at)) = (self.place, before) {
                let earlier = ids[..at].iter().rev().zip(ids[..=end].iter().rev());
                let n_same = earlier.take(MAX_SAME).take_while(|(a, b)| a == b).count();
                self.place = Some(Place { at, n_same });
            }
        }
        self.n_seen = ids.len();
    }

    /// How likely each further guess is right, if those before it were; without end, if there is any.
    pub fn chances(&self) -> impl Iterator<Item = f64> + '_ {
        let n_same = self.place.into_iter().flat_map(|place| place.n_same..);
        n_same.map(|n_same| self.rates[Place::class(n_same)])
    }

    /// The next `n` ids, if there is any guess. `ids` are those that were last looked at.
    pub fn guess(&self, ids: &[u32], n: usize) -> Vec<u32> {
        let Some(place) = self.place else { return Vec::new() };
        let mut guessed: Vec<u32> = Vec::with_capacity(n);
        for at in place.at..place.at + n {
            // What repeats at a distance that is shorter than the guess goes on repeating.
            let id = ids.get(at).copied().unwrap_or_else(|| guessed[at - ids.len()]);
            guessed.push(id);
        }
        guessed
    }
}

/// How many guesses make a step give the most tokens for its time: each further one adds a token as often as all up to it are
/// right, and takes `cost` of a step's time.
pub fn best_length(chances: impl Iterator<Item = f64>, cost: f64, most: usize) -> usize {
    let (mut n, mut reach, mut tokens, mut time) = (0, 1.0, 1.0, 1.0);
    for chance in chances.take(most) {
        reach *= chance;
        if reach * time <= tokens * cost {
            break;
        }
        (n, tokens, time) = (n + 1, tokens + reach, time + cost);
    }
    n
}

#[cfg(test)]
mod tests {
    use model::rng::Rng;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_repetition_is_found_followed_and_given_up() {
        let mut lookup = Lookup::default();
        let mut ids = vec![1, 2, 3, 4, 5, 9, 2, 3];
        lookup.update(&ids);
        assert_eq!(lookup.guess(&ids, 3), [4, 5, 9]);
        assert_eq!(lookup.place.map(|place| (place.at, place.n_same)), Some((3, 2)));
        ids.push(4);
        lookup.update(&ids);
        assert_eq!(lookup.place.map(|place| (place.at, place.n_same)), Some((4, 3)));
        ids.push(7);
        lookup.update(&ids);
        assert!(lookup.guess(&ids, 3).is_empty() && lookup.chances().next().is_none());
    }

    #[test]
    fn a_short_period_is_guessed_beyond_the_end() {
        let mut lookup = Lookup::default();
        let ids = [5, 6, 7, 5, 6, 7, 5];
        lookup.update(&ids);
        assert_eq!(lookup.guess(&ids, 7), [6, 7, 5, 6, 7, 5, 6]);
    }

    #[test]
    fn classes_double() {
        let classes: Vec<usize> = [1, 2, 3, 4, 5, 8, 9, 16, 17, 999].map(Place::class).into();
        assert_eq!(classes, [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    }

    #[test]
    fn guesses_that_are_never_right_are_soon_not_worth_checking() {
        // Two ids repeat often, but what follows is by chance.
        let (mut rng, mut lookup) = (Rng::new(1), Lookup::default());
        let mut ids = Vec::new();
        let mut n_checked = 0;
        for i in 0..2000 {
            ids.push(if i % 5 < 2 { i % 5 } else { 2 + rng.below(100_000) as u32 });
            lookup.update(&ids);
            n_checked += best_length(lookup.chances(), 0.1, 8);
        }
        assert!(n_checked < 40, "{n_checked}");
        let before = n_checked;
        // It goes on as it was before: that is seen at once.
        let mut n_right = 0;
        for i in 0..500 {
            ids.push(ids[i]);
            lookup.update(&ids);
            let guess = lookup.guess(&ids, best_length(lookup.chances(), 0.1, 8));
            n_checked += guess.len();
            n_right += guess.iter().zip(&ids[i + 1..]).take_while(|(a, b)| a == b).count();
        }
        assert!(n_right > 2500 && n_checked - before < 500 * 8 + 1, "{n_right} of {}", n_checked - before);
    }

    #[test]
    fn the_length_is_the_one_with_most_tokens_for_the_time() {
        for (chance, cost) in [(0.9, 0.1), (0.5, 0.3), (0.99, 0.5), (0.2, 0.3), (1.0, 0.9)] {
            let speed = |n: usize| {
                let tokens: f64 = (0..=n).map(|i| f64::powi(chance, i as i32)).sum();
                tokens / (1.0 + cost * n as f64)
            };
            let best = (0..=12).max_by(|&a, &b| speed(a).total_cmp(&speed(b)).then(b.cmp(&a)));
            assert_eq!(Some(best_length(std::iter::repeat(chance), cost, 12)), best, "{chance}, {cost}");
        }
    }

    proptest! {
        #[test]
        fn what_is_guessed_stood_there_before(ids in prop::collection::vec(0u32..4, 0..80), step in 1usize..5) {
            let mut lookup = Lookup::default();
            for end in (0..=ids.len()).step_by(step) {
                let ids = &ids[..end];
                lookup.update(ids);
                let guess = lookup.guess(ids, 5);
                if let Some(place) = lookup.place {
                    prop_assert_eq!(guess.len(), 5);
                    let n = place.n_same.min(2);
                    prop_assert_eq!(&ids[place.at - n..place.at], &ids[end - n..]);
                    prop_assert_eq!(guess[0], ids[place.at]);
                } else {
                    prop_assert!(guess.is_empty());
                }
            }
        }
    }
}
