//! Rotary position embedding: pairs of elements of each head turn by an angle that grows with the position.
//!
//! Pairs are element `i` and `i + rotary_dim / 2` ("half split", as Hugging Face stores LLaMA weights), not
//! neighbours. Angles come as tables of cosines and sines, so the kernel knows no frequencies or scalings.

use rayon::prelude::*;

use crate::rows_per_task;
use crate::simd::{Simd, dispatch};

/// What is rotated, and by which tables.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Elements per row, of which the first `n_head * head_dim` are rotated.
    pub row_width: usize,
    /// Heads to rotate: in a fused row of queries, keys and values, those of queries and keys.
    pub n_head: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Elements of a head that turn, counted from its start; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Cosines of the angles. `[n_positions, rotary_dim / 2]`
    pub cos: &'a [f32],
    /// Sines of the angles. `[n_positions, rotary_dim / 2]`
    pub sin: &'a [f32],
    /// Position of the first row of each sequence.
    pub start: usize,
    /// Rows per sequence: row `r` is at position `start + r % seq_len`.
    pub seq_len: usize,
}

/// Rotates heads in place.
///
/// # Shapes
/// - `x`: `[batch * seq_len, row_width]`
///
/// # Panics
/// If the fields of `rope` contradict each other or `x`, or a position is past the tables.
pub fn rotate(x: &mut [f32], rope: &Rope) {
    turn(x, rope, 1.0);
}

/// Rotates heads back: the inverse of [`rotate`], which is also its backward for a gradient.
///
/// # Shapes
/// - `x`: `[batch * seq_len, row_width]`
///
/// # Panics
/// As [`rotate`].
pub fn rotate_back(x: &mut [f32], rope: &Rope) {
    turn(x, rope, -1.0);
}

fn turn(x: &mut [f32], rope: &Rope, direction: f32) {
    if x.is_empty() {
        return;
    }
    rope.check(x.len());
    let rows = rows_per_task(rope.row_width);
    x.par_chunks_mut(rows * rope.row_width).enumerate().for_each(|(task, x)| {
        turn_rows(x, rope, task * rows, direction);
    });
}

impl Rope<'_> {
    fn check(&self, len: usize) {
        let Self { row_width, n_head, head_dim, rotary_dim, start, seq_len, .. } = *self;
        assert!(
            row_width > 0 && len.is_multiple_of(row_width) && n_head * head_dim <= row_width,
            "rope: {n_head} heads of {head_dim} in rows of {row_width}, {len} elements"
        );
        assert!(
            rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim,
            "rope: rotary_dim {rotary_dim} with head_dim {head_dim}"
        );
        let (rows, needed) = (len / row_width, (start + seq_len) * rotary_dim / 2);
        assert!(
            seq_len > 0
                && rows.is_multiple_of(seq_len)
                && self.cos.len() >= needed
                && self.sin.len() >= needed,
            "rope: {rows} rows in sequences of {seq_len} from position {start}, tables of {} and {} for {needed}",
            self.cos.len(),
            self.sin.len()
        );
    }
}

dispatch! {
    fn turn_rows(x: &mut [f32], rope: &Rope, first_row: usize, direction: f32) = turn_rows_impl
}

#[inline(always)]
fn turn_rows_impl<S: Simd>(x: &mut [f32], rope: &Rope, first_row: usize, direction: f32) {
    let half = rope.rotary_dim / 2;
    if half == 0 || rope.n_head == 0 {
        return;
    }
    for (r, row) in x.chunks_exact_mut(rope.row_width).enumerate() {
        let angles = (rope.start + (first_row + r) % rope.seq_len) * half..;
        let (cos, sin) = (&rope.cos[angles.clone()][..half], &rope.sin[angles][..half]);
        for head in row[..rope.n_head * rope.head_dim].chunks_exact_mut(rope.head_dim) {
            let (a, b) = head[..2 * half].split_at_mut(half);
            turn_pairs::<S>(a, b, cos, sin, direction);
        }
    }
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)`; `direction` -1 negates the sine.
#[inline(always)]
fn turn_pairs<S: Simd>(a: &mut [f32], b: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    #[inline(always)]
    fn turned<S: Simd>(a: S, b: S, cos: S, sin: S) -> (S, S) {
        (a * cos - b * sin, b * cos + a * sin)
    }
    let direction = S::splat(direction);
    let angles = cos.chunks_exact(S::LANES).zip(sin.chunks_exact(S::LANES));
    let (mut a, mut b) = (a.chunks_exact_mut(S::LANES), b.chunks_exact_mut(S::LANES));
    for ((a, b), (cos, sin)) in (&mut a).zip(&mut b).zip(angles) {
        let (x, y) = turned(S::load(a), S::load(b), S::load(cos), S::load(sin) * direction);
        x.store(a);
        y.store(b);
    }
    let (a, b) = (a.into_remainder(), b.into_remainder());
    if !a.is_empty() {
        let tail = cos.len() - a.len()..;
        let [va, vb, cos, sin] = [&*a, &*b, &cos[tail.clone()], &sin[tail]].map(|x| S::load_partial(x, 0.0));
        let (x, y) = turned(va, vb, cos, sin * direction);
        x.store_partial(a);
        y.store_partial(b);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::on_each;
    use crate::reference::{assert_close, bits, on_threads, values};

    fn tables(n_positions: usize, rotary_dim: usize) -> [Vec<f32>; 2] {
        let half = rotary_dim / 2;
        let angle = |i: usize| (i / half) as f32 * 0.7f32.powi((i % half) as i32);
        [f32::cos, f32::sin].map(|f| (0..n_positions * half).map(|i| f(angle(i))).collect())
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition_and_turns_back(
            batch in 1usize..3, seq_len in 1usize..5, n_head in 0usize..4, half in 0usize..20,
            rest in 0usize..4, extra in 1usize..9, start in 0usize..6,
        ) {
            let (rotary_dim, head_dim) = (2 * half, 2 * half + rest);
            let row_width = n_head * head_dim + extra;
            let [cos, sin] = if half > 0 { tables(start + seq_len, rotary_dim) } else { [vec![], vec![]] };
            let rope = Rope { row_width, n_head, head_dim, rotary_dim, cos: &cos, sin: &sin, start, seq_len };
            let x = values(batch * seq_len * row_width, 1);
            on_each(|| {
                let mut y = x.clone();
                rotate(&mut y, &rope);
                for (i, &y) in y.iter().enumerate() {
                    let (row, column) = (i / row_width, i % row_width);
                    let in_head = column % head_dim.max(1);
                    let exact = if column >= n_head * head_dim || in_head >= rotary_dim {
                        f64::from(x[i])
                    } else {
                        let angle = (start + row % seq_len) * half + in_head % half;
                        let [cos, sin] = [cos[angle], sin[angle]].map(f64::from);
                        if in_head < half {
                            f64::from(x[i]) * cos - f64::from(x[i + half]) * sin
                        } else {
                            f64::from(x[i]) * cos + f64::from(x[i - half]) * sin
                        }
                    };
                    assert_close(y, exact, 3e-7, format_args!("row {row}, column {column}"));
                }
                rotate_back(&mut y, &rope);
                for (back, x) in y.iter().zip(&x) {
                    assert_close(*back, f64::from(*x), 1e-6, "there and back");
                }
            });
        }
    }

    #[test]
    fn a_row_alone_and_among_others_on_any_number_of_threads() {
        on_each(|| {
            let [cos, sin] = tables(100, 36);
            let rope = |start, seq_len| Rope {
                row_width: 400,
                n_head: 8,
                head_dim: 40,
                rotary_dim: 36,
                cos: &cos,
                sin: &sin,
                start,
                seq_len,
            };
            let x = values(300 * 400, 2);
            let whole = |n_threads| {
                let mut y = x.clone();
                on_threads(n_threads, || rotate(&mut y, &rope(0, 100)));
                bits(&y)
            };
            let one = whole(1);
            assert!(one == whole(2));
            for r in [0, 1, 99, 100, 250] {
                let mut row = x[r * 400..(r + 1) * 400].to_vec();
                rotate(&mut row, &rope(r % 100, 1));
                assert_eq!(bits(&row), one[r * 400..(r + 1) * 400]);
            }
        });
    }

    #[test]
    #[should_panic(expected = "from position 3, tables of 8 and 8 for 10")]
    fn positions_past_the_tables_are_refused() {
        let tables = [1.0; 8];
        let rope = Rope {
            row_width: 4,
            n_head: 1,
            head_dim: 4,
            rotary_dim: 4,
            cos: &tables,
            sin: &tables,
            start: 3,
            seq_len: 2,
        };
        rotate(&mut [0.0; 8], &rope);
    }
}
