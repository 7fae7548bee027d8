//! Finding scales: the searches of ggml's reference, in its order of operations, so that the bytes are the same.
//!
//! All choose the scale (and the minimum) of a group of numbers so that what is lost is small, weighed by how large each
//! number is, and where that is known by how important ([`weights`]). They try roundings with a few scales near the obvious one, solve for the best scale of each rounding by
//! least squares, and keep the best. Every product is rounded, as in C without contraction into fused operations.

/// Groups whose numbers are all smaller are zeros.
pub const TINY: f32 = 1e-15;

/// A group as whole numbers, with `x = scale * quants`.
pub struct Signed<const N: usize> {
    pub scale: f32,
    /// Without an offset, or with one: as the function says.
    pub quants: [u8; N],
}

/// A group as whole numbers, with `x = scale * quants - min`.
pub struct Affine<const N: usize> {
    pub scale: f32,
    /// At least 0.
    pub min: f32,
    pub quants: [u8; N],
}

/// What [`affine`] tries: to bring the range to `max + first + step * i`, for each i up to the last.
pub struct Steps {
    /// The largest whole number.
    pub max: i32,
    pub first: f32,
    pub step: f32,
    pub last: i32,
    /// Whether errors count as they are, and not squared.
    pub absolute: bool,
}

impl Steps {
    /// What is tried where it is known which numbers are important.
    pub const fn weighed(max: i32) -> Self {
        Self { max, first: -0.9, step: 0.05, last: 36, absolute: false }
    }
}

/// The mean of the squares.
pub fn mean_square(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |sum, value| sum + value * value) / values.len() as f32
}

/// What errors of numbers weigh: as much as their columns are important (the mean square of what they are multiplied by),
/// times their own size, which those around them, of the mean square `around`, keep from being nothing.
pub fn weights<const N: usize>(values: &[f32; N], importance: &[f32; N], around: f32) -> [f32; N] {
    std::array::from_fn(|idx| importance[idx] * (around + values[idx] * values[idx]).sqrt())
}

/// Their sum.
pub fn sum(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |sum, weight| sum + weight)
}

/// Each number squared: what errors weigh where nothing else is known.
pub fn squares<const N: usize>(values: &[f32; N]) -> [f32; N] {
    values.map(|value| value * value)
}

/// The nearest whole number, of two as near the even one. Adding 1.5 * 2^23 leaves no room for a fraction; the result
/// stands in the lower bits. Only numbers below 2^22 have one; for others it is some number, as in ggml.
pub fn nearest(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The first number of the largest magnitude.
pub fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |extreme: f32, &value| if value.abs() > extreme.abs() { value } else { extreme })
}

/// Whole numbers from `-limit` to `limit - 1`, stored with `limit` added. Of zeros, 0.
pub fn signed<const N: usize>(values: &[f32; N], weights: &[f32; N], limit: i32) -> Signed<N> {
    let extreme = extreme(values);
    if extreme.abs() < TINY {
        return Signed { scale: 0.0, quants: [0; N] };
    }
    let round = |inverse: f32| values.map(|value| nearest(inverse * value).clamp(-limit, limit - 1));
    let stored = |quants: [i32; N]| quants.map(|quant| (quant + limit) as u8);
    let sums = |quants: &[i32; N]| {
        let (mut products, mut squares) = (0.0f32, 0.0f32);
        for ((value, weight), &quant) in values.iter().zip(weights).zip(quants) {
            let quant = quant as f32;
            products += weight * value * quant;
            squares += weight * quant * quant;
        }
        (products, squares)
    };
    let mut quants = round(-limit as f32 / extreme);
    let (products, squares) = sums(&quants);
    let mut scale = if squares == 0.0 { 0.0 } else { products / squares };
    let mut best = scale * products;
    for step in (-9..=9).filter(|&step| step != 0) {
        let tried = round(-(limit as f32 + 0.1 * step as f32) / extreme);
        let (products, squares) = sums(&tried);
        if squares > 0.0 && products * products > best * squares {
            quants = tried;
            scale = products / squares;
            best = scale * products;
        }
    }
    Signed { scale, quants: stored(quants) }
}

/// Whole numbers from `-limit` to `limit - 1`, stored with `limit` added; weighed by squares. One rounding, of which
/// single numbers are then moved while that helps, five times at most. Of zeros, 0.
pub fn moved<const N: usize>(values: &[f32; N], limit: i32) -> Signed<N> {
    let extreme = extreme(values);
    if extreme.abs() < TINY {
        return Signed { scale: 0.0, quants: [0; N] };
    }
    let inverse = -limit as f32 / extreme;
    let mut quants = values.map(|value| nearest(inverse * value).clamp(-limit, limit - 1));
    let (mut products, mut squares) = (0.0f32, 0.0f32);
    for (value, &quant) in values.iter().zip(&quants) {
        let (weight, quant) = (value * value, quant as f32);
        products += weight * value * quant;
        squares += weight * quant * quant;
    }
    for _ in 0..5 {
        let mut is_changed = false;
        for (value, quant) in values.iter().zip(&mut quants) {
            let (weight, old) = (value * value, *quant as f32);
            let others = products - weight * value * old;
            if others <= 0.0 || others.is_nan() {
                continue;
            }
            let other_squares = squares - weight * old * old;
            let moved = nearest(value * other_squares / others).clamp(-limit, limit - 1);
            if moved == *quant {
                continue;
            }
            let new = moved as f32;
            let (new_products, new_squares) =
                (others + weight * value * new, other_squares + weight * new * new);
            if new_squares > 0.0 && new_products * new_products * squares > products * products * new_squares
            {
                (*quant, products, squares) = (moved, new_products, new_squares);
                is_changed = true;
            }
        }
        if !is_changed {
            break;
        }
    }
    let scale = if squares > 0.0 { products / squares } else { 0.0 };
    Signed { scale, quants: quants.map(|quant| (quant + limit) as u8) }
}

/// Whole numbers from 0, with a minimum that is not above 0.
pub fn affine<const N: usize>(values: &[f32; N], weights: &[f32; N], steps: &Steps) -> Affine<N> {
    let (mut min, mut max) = (values[0], values[0]);
    let mut sum_weights = weights[0];
    let mut sum_values = sum_weights * values[0];
    for (&value, &weight) in values.iter().zip(weights).skip(1) {
        min = if value < min { value } else { min };
        max = if value > max { value } else { max };
        sum_weights += weight;
        sum_values += weight * value;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max == min {
        return Affine { scale: 0.0, min: -min, quants: [0; N] };
    }
    let round =
        |inverse: f32, min: f32| values.map(|value| nearest(inverse * (value - min)).clamp(0, steps.max));
    let lost = |quants: &[i32; N], scale: f32, min: f32| {
        let mut lost = 0.0f32;
        for ((value, weight), &quant) in values.iter().zip(weights).zip(quants) {
            let off = scale * quant as f32 + min - value;
            lost += weight * if steps.absolute { off.abs() } else { off * off };
        }
        lost
    };
    let inverse = steps.max as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    let mut quants = round(inverse, min);
    let mut best = lost(&quants, scale, min);
    for step in 0..=steps.last {
        // A better minimum is where the next step begins.
        let inverse = (steps.first + steps.step * step as f32 + steps.max as f32) / (max - min);
        let tried = round(inverse, min);
        let (mut sum, mut squares, mut products) = (0.0f32, 0.0f32, 0.0f32);
        for ((value, weight), &quant) in values.iter().zip(weights).zip(&tried) {
            let quant = quant as f32;
            sum += weight * quant;
            squares += weight * quant * quant;
            products += weight * quant * value;
        }
        let determinant = sum_weights * squares - sum * sum;
        if determinant > 0.0 {
            let mut new_scale = (sum_weights * products - sum_values * sum) / determinant;
            let mut new_min = (squares * sum_values - sum * products) / determinant;
            if new_min > 0.0 {
                (new_scale, new_min) = (products / squares, 0.0);
            }
            let new_lost = lost(&tried, new_scale, new_min);
            if new_lost < best {
                (quants, best, scale, min) = (tried, new_lost, new_scale, new_min);
            }
        }
    }
    Affine { scale, min: -min, quants: quants.map(|quant| quant as u8) }
}

/// Whole numbers from 0 to `max` for numbers that are not below 0, such as scales: a rounding with the best of a few
/// scales, of which single numbers are then moved while that helps, five times at most. Of zeros, 0.
pub fn positive<const N: usize>(values: &[f32; N], weights: &[f32; N], max: i32) -> Signed<N> {
    let largest = values.iter().fold(0.0f32, |largest, &value| if largest > value { largest } else { value });
    if largest < TINY {
        return Signed { scale: 0.0, quants: [0; N] };
    }
    let lost = |inverse: f32, max: i32| {
        let scale = 1.0 / inverse;
        let mut lost = 0.0f32;
        for (value, weight) in values.iter().zip(weights) {
            let off = value - scale * nearest(inverse * value).min(max) as f32;
            lost += weight * off * off;
        }
        lost
    };
    let mut inverse = max as f32 / largest;
    let mut best = lost(inverse, i32::MAX);
    for step in (-4..=4).filter(|&step| step != 0) {
        let tried = (0.1 * step as f32 + max as f32) / largest;
        let lost = lost(tried, max);
        if lost < best {
            (best, inverse) = (lost, tried);
        }
    }
    let mut quants = values.map(|value| nearest(inverse * value).min(max));
    let (mut products, mut squares) = (0.0f32, 0.0f32);
    for ((value, weight), &quant) in values.iter().zip(weights).zip(&quants) {
        let quant = quant as f32;
        products += weight * value * quant;
        squares += weight * quant * quant;
    }
    for _ in 0..5 {
        let mut is_changed = false;
        for ((value, weight), quant) in values.iter().zip(weights).zip(&mut quants) {
            let old = *quant as f32;
            let (others, other_squares) = (products - weight * value * old, squares - weight * old * old);
            if !(others > 0.0 && other_squares > 0.0) {
                continue;
            }
            let moved = nearest(value * other_squares / others).min(max);
            if moved == *quant {
                continue;
            }
            let new = moved as f32;
            let (new_products, new_squares) =
                (others + weight * value * new, other_squares + weight * new * new);
            if new_products * new_products * squares > products * products * new_squares {
                (*quant, products, squares) = (moved, new_products, new_squares);
                is_changed = true;
            }
        }
        if !is_changed {
            break;
        }
    }
    let scale = if squares > 0.0 { products / squares } else { 0.0 };
    Signed { scale, quants: quants.map(|quant| quant as u8) }
}
