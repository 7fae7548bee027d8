//! Spending bits where they help most.
//!
//! Each tensor may be had in several formats, dearer ones with smaller errors. The least sum of errors for a given number
//! of bytes is sought as by Lagrange's method: of each tensor only the formats on the lower convex hull of errors over
//! bytes are considered, and the step that takes away most error for a byte is taken first, whichever tensor it is of. On
//! the hulls that is the best choice for every sum at which it stops; what is left then goes to smaller steps that still
//! fit.

use crate::Format;

/// A tensor in some format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// The format.
    pub format: Format,
    /// What it takes.
    pub bytes: u64,
    /// What is lost, by a measure that may be added up over tensors.
    pub error: f64,
}

/// The format of each tensor, so that together they take at most so many bytes and lose little; nothing if even the
/// smallest take more.
///
/// # Panics
/// If a tensor has no offer.
pub fn spend(tensors: &[Vec<Offer>], budget: u64) -> Option<Vec<Format>> {
    let hulls: Vec<Vec<Offer>> = tensors.iter().map(|offers| hull(offers)).collect();
    let mut rest = budget.checked_sub(least(tensors))?;
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (tensor_idx, hull) in hulls.iter().enumerate() {
        for (idx, pair) in hull.windows(2).enumerate() {
            steps.push((gain(&pair[0], &pair[1]), tensor_idx, idx));
        }
    }
    // On a hull gains fall, so the steps of a tensor stay in order; of equals the first tensor's comes first.
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut chosen = vec![0; tensors.len()];
    for (_, tensor_idx, idx) in steps {
        let hull = &hulls[tensor_idx];
        let cost = hull[idx + 1].bytes - hull[idx].bytes;
        // A step that was left out leaves out those after it.
        if chosen[tensor_idx] == idx && cost <= rest {
            chosen[tensor_idx] += 1;
            rest -= cost;
        }
    }
    Some(hulls.iter().zip(chosen).map(|(hull, idx)| hull[idx].format).collect())
}

/// The bytes of all tensors in their smallest formats.
pub fn least(tensors: &[Vec<Offer>]) -> u64 {
    tensors.iter().filter_map(|offers| offers.iter().map(|offer| offer.bytes).min()).sum()
}

/// Error that a byte more takes away.
fn gain(from: &Offer, to: &Offer) -> f64 {
    (from.error - to.error) / (to.bytes - from.bytes) as f64
}

/// The offers on the lower convex hull, from the smallest on, each with a smaller error than the one before.
fn hull(offers: &[Offer]) -> Vec<Offer> {
    let mut sorted = offers.to_vec();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.error.total_cmp(&b.error)));
    let mut hull: Vec<Offer> = Vec::new();
    for offer in sorted {
        if hull.last().is_some_and(|last| last.bytes == offer.bytes || last.error <= offer.error) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && gain(&before, &last) <= gain(&last, &offer)
        {
            hull.pop();
        }
        hull.push(offer);
    }
    assert!(!hull.is_empty(), "a tensor without an offer");
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(of: &[(Format, u64, f64)]) -> Vec<Offer> {
        of.iter().map(|&(format, bytes, error)| Offer { format, bytes, error }).collect()
    }

    fn total(tensors: &[Vec<Offer>], formats: &[Format]) -> (u64, f64) {
        let chosen = tensors.iter().zip(formats).map(|(offers, format)| {
            offers.iter().find(|offer| offer.format == *format).expect("one of its own")
        });
        chosen.fold((0, 0.0), |(bytes, error), offer| (bytes + offer.bytes, error + offer.error))
    }

    #[test]
    fn bytes_go_where_they_help_most() {
        let tensors = [
            offers(&[(Format::Q2_K, 10, 9.0), (Format::Q4_K, 20, 3.0), (Format::Q8_0, 40, 0.0)]),
            offers(&[(Format::Q2_K, 100, 9.0), (Format::Q4_K, 200, 1.0)]),
        ];
        assert_eq!(spend(&tensors, 109), None);
        assert_eq!(least(&tensors), 110);
        for (budget, want) in [
            (110, [Format::Q2_K, Format::Q2_K]),
            (119, [Format::Q2_K, Format::Q2_K]),
            (120, [Format::Q4_K, Format::Q2_K]),
            (140, [Format::Q8_0, Format::Q2_K]),
            (239, [Format::Q8_0, Format::Q2_K]),
            (240, [Format::Q8_0, Format::Q4_K]),
            (u64::MAX, [Format::Q8_0, Format::Q4_K]),
        ] {
            assert_eq!(spend(&tensors, budget), Some(want.to_vec()), "{budget}");
        }
    }

    #[test]
    fn what_costs_more_and_helps_less_is_never_taken() {
        // Above the line from Q2_K to Q8_0, worse than a smaller one, and as large as a better one.
        let tensor = offers(&[
            (Format::Q8_0, 40, 0.0),
            (Format::Q4_0, 20, 8.0),
            (Format::Q2_K, 10, 9.0),
            (Format::Q4_1, 22, 8.5),
            (Format::IQ4_NL, 20, 8.2),
        ]);
        assert_eq!(spend(std::slice::from_ref(&tensor), 39), Some(vec![Format::Q2_K]));
        assert_eq!(spend(std::slice::from_ref(&tensor), 40), Some(vec![Format::Q8_0]));
    }

    /// Against all choices there are: no better one within what was spent.
    #[test]
    fn no_choice_of_as_many_bytes_is_better() {
        let formats = [Format::Q2_K, Format::Q4_K, Format::Q6_K];
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        for _ in 0..300 {
            let tensors: Vec<Vec<Offer>> = (0..4)
                .map(|_| {
                    let (size, error) = (1 + random(50), 1.0 + random(100) as f64);
                    let of = [(2, 1.0), (4, 0.3), (6, 0.02)].iter().zip(formats);
                    of.map(|(&(n, e), format)| Offer { format, bytes: n * size, error: e * error }).collect()
                })
                .collect();
            let least = least(&tensors);
            let budget = least + random(2 * least);
            let found = total(&tensors, &spend(&tensors, budget).expect("enough"));
            assert!(found.0 <= budget);
            let all = (0..81usize).map(|i| [i % 3, i / 3 % 3, i / 9 % 3, i / 27].map(|j| formats[j]));
            // Greedy may leave something at the end, never more than the largest step is worth.
            let step = tensors.iter().map(|offers| offers[0].error).fold(0.0, f64::max);
            let best = all.map(|choice| total(&tensors, &choice)).filter(|(bytes, _)| *bytes <= budget);
            let best = best.map(|(_, error)| error).fold(f64::INFINITY, f64::min);
            assert!(found.1 <= best + step, "{found:?}, {best}");
        }
    }
}
