//! Matrix products of `f32`: `C = A B` and `C += A B` for operands of any stride.
//!
//! Every element of C has one accumulator, which adds `a[i][k] * b[k][j]` in order of `k`. Storing it to C
//! and going on from there later is exact, so blocks along `k` change nothing; vector lanes run over `j`.
//! Hence one row multiplied alone is bit-equal to that row in a large product (see the crate's doc).
//!
//! Two ways to the same bits:
//! - `blocked`: many rows, bound by arithmetic. Blocks of A and B are copied into the order in which a
//!   register tile of 6 or 12 rows reads them, after Goto and BLIS.
//! - `skinny`: at most 4 rows, bound by reading B once, so nothing is copied.
//!
//! With [`Precision::Bf16`] factors are rounded first (`bf16`), which is faster and other bits.
//!
//! Threads share C by rectangles. Each packs what it needs; that A is packed by several costs less than
//! waiting for each other.

#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16;
pub(crate) mod blocked;
mod skinny;
mod view;
#[cfg(target_arch = "x86_64")]
mod wide;

use std::sync::atomic::{AtomicBool, Ordering};

pub use view::{Mat, MatMut};

use crate::Isa;

/// Multiply-adds below which a second thread costs more than it saves: waking one takes some 5 to 10 µs,
/// in which one core does about half a million.
const MIN_WORK_PER_TASK: usize = 1 << 19;

/// The same for few rows, where reading B bounds the time: elements of B per task (256 KiB). One row times
/// a 512 x 512 weight: 38 us on one thread, 19 us on two (Zen 3).
const MIN_READ_PER_TASK: usize = 1 << 16;

/// How the factors of [`matmul`] and [`matmul_add`] are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To bfloat16, 8 bits of mantissa. Sums are in single precision.
    Bf16,
}

/// Whether products of this process are in [`Precision::Bf16`].
static IS_BF16: AtomicBool = AtomicBool::new(false);

impl Precision {
    /// Whether the instruction set in use multiplies such numbers.
    pub fn is_available(self) -> bool {
        self == Self::F32 || Isa::current() == Isa::Bf16
    }

    /// Sets it for the products of this process.
    ///
    /// # Panics
    /// If it is not [available](Self::is_available).
    pub fn set(self) {
        assert!(self.is_available(), "no products of {self:?} on {}", Isa::current().name());
        IS_BF16.store(self == Self::Bf16, Ordering::Relaxed);
    }

    fn current() -> Self {
        if IS_BF16.load(Ordering::Relaxed) { Self::Bf16 } else { Self::F32 }
    }

    /// What multiplies on one thread.
    fn serial(self) -> Serial {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => |a, b, mut c, start| bf16::multiply(a, b, &mut c, start),
            _ => serial,
        }
    }
}

/// A product on one thread.
type Serial = fn(Mat, Mat, MatMut, Start);

/// What a product starts from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// From zero: what is in C does not matter.
    Zero,
    /// From C: the accumulators begin with its values.
    C,
}

/// `C = A B`.
///
/// # Shapes
/// - `a`: `[m, k]`, `b`: `[k, n]`, `c`: `[m, n]`
///
/// # Panics
/// If the shapes do not fit together.
pub fn matmul(a: Mat, b: Mat, c: MatMut) {
    parallel(a, b, c, Start::Zero, Precision::current());
}

/// `C += A B`. The accumulators start from C's values, so copying a bias into C first adds it exactly.
///
/// # Shapes
/// - `a`: `[m, k]`, `b`: `[k, n]`, `c`: `[m, n]`
///
/// # Panics
/// If the shapes do not fit together.
pub fn matmul_add(a: Mat, b: Mat, c: MatMut) {
    parallel(a, b, c, Start::C, Precision::current());
}

/// [`matmul`] on the calling thread only, and never rounded, for use inside kernels that are parallel themselves.
///
/// # Panics
/// If the shapes do not fit together.
pub fn matmul_serial(a: Mat, b: Mat, c: MatMut) {
    serial(a, b, c, Start::Zero);
}

/// [`matmul_add`] on the calling thread only, and never rounded, for use inside kernels that are parallel themselves.
///
/// # Panics
/// If the shapes do not fit together.
pub fn matmul_add_serial(a: Mat, b: Mat, c: MatMut) {
    serial(a, b, c, Start::C);
}

fn check_shapes(a: &Mat, b: &Mat, c: &MatMut) {
    assert!(
        a.cols() == b.rows() && a.rows() == c.rows() && b.cols() == c.cols(),
        "matmul: a [{}, {}], b [{}, {}], c [{}, {}]",
        a.rows(),
        a.cols(),
        b.rows(),
        b.cols(),
        c.rows(),
        c.cols()
    );
}

fn parallel(a: Mat, b: Mat, c: MatMut, start: Start, precision: Precision) {
    check_shapes(&a, &b, &c);
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    let n_threads = rayon::current_num_threads();
    let worth = if m <= skinny::MAX_ROWS {
        (n * k) / MIN_READ_PER_TASK
    } else {
        m.saturating_mul(n).saturating_mul(k) / MIN_WORK_PER_TASK
    };
    divide(a, b, c, start, worth.clamp(1, n_threads), precision.serial());
}

/// Cuts C into `n_tasks` rectangles of about equal size, by halving along the longer side.
fn divide(a: Mat, b: Mat, c: MatMut, start: Start, n_tasks: usize, serial: Serial) {
    let (m, n) = (c.rows(), c.cols());
    // Cuts fall between register tiles. Halving the side that has more of them keeps both operands short.
    let (row_tiles, col_tiles) = (m.div_ceil(CUT_ROWS), n.div_ceil(CUT_COLS));
    if n_tasks <= 1 || row_tiles.max(col_tiles) < 2 {
        return serial(a, b, c, start);
    }
    let left_tasks = n_tasks / 2;
    let cut = |tiles: usize| (tiles * left_tasks / n_tasks).max(1);
    let right_tasks = n_tasks - left_tasks;
    if m <= skinny::MAX_ROWS || n >= m {
        if col_tiles < 2 {
            return serial(a, b, c, start);
        }
        let at = cut(col_tiles) * CUT_COLS;
        let (b_left, b_right) = b.split_cols(at);
        let (c_left, c_right) = c.split_cols(at);
        rayon::join(
            || divide(a, b_left, c_left, start, left_tasks, serial),
            || divide(a, b_right, c_right, start, right_tasks, serial),
        );
    } else {
        let at = cut(row_tiles) * CUT_ROWS;
        let (a_top, a_bottom) = a.split_rows(at);
        let (c_top, c_bottom) = c.split_rows(at);
        rayon::join(
            || divide(a_top, b, c_top, start, left_tasks, serial),
            || divide(a_bottom, b, c_bottom, start, right_tasks, serial),
        );
    }
}

/// Rows are cut at multiples of this: those of the largest register tile.
const CUT_ROWS: usize = 2 * blocked::TILE_ROWS;

/// Columns are cut at multiples of this: the width of a register tile for the widest vectors (2 x 16).
const CUT_COLS: usize = 32;

fn serial(a: Mat, b: Mat, mut c: MatMut, start: Start) {
    check_shapes(&a, &b, &c);
    if a.rows() <= skinny::MAX_ROWS && b.has_unit_stride() {
        skinny::multiply(a, b, &mut c, start);
    } else {
        blocked::multiply(a, b, &mut c, start);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Isa;
    use crate::isa::on_each;
    use crate::reference::{bits, on_threads, values};

    /// How an operand lies in memory.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Layout {
        Rows,
        Columns,
        RowsWithGaps,
        /// Neither stride is 1.
        Scattered,
    }
    use Layout::*;

    const LAYOUTS: [Layout; 4] = [Rows, Columns, RowsWithGaps, Scattered];

    /// A matrix of varied numbers, kept row after row and seen through any layout.
    struct Values {
        rows: usize,
        cols: usize,
        data: Vec<f32>,
    }

    impl Values {
        fn new(rows: usize, cols: usize, seed: u32) -> Self {
            Self { rows, cols, data: values(rows * cols, seed) }
        }

        /// The same matrix in another layout. Gaps hold NaN, which any use would spread.
        fn laid_out(&self, layout: Layout) -> Vec<f32> {
            let [row_stride, col_stride] = self.strides(layout);
            let mut out = vec![f32::NAN; self.rows * row_stride + self.cols * col_stride];
            for (i, j) in (0..self.rows).flat_map(|i| (0..self.cols).map(move |j| (i, j))) {
                out[i * row_stride + j * col_stride] = self.data[i * self.cols + j];
            }
            out
        }

        fn strides(&self, layout: Layout) -> [usize; 2] {
            match layout {
                Rows => [self.cols, 1],
                Columns => [1, self.rows],
                RowsWithGaps => [self.cols + 3, 1],
                Scattered => [2 * self.cols + 1, 2],
            }
        }

        fn view<'a>(&self, data: &'a [f32], layout: Layout) -> Mat<'a> {
            Mat::strided(data, [self.rows, self.cols], self.strides(layout))
        }
    }

    /// The definition, to the bit: one accumulator per element, in order of k.
    fn naive(a: &Values, b: &Values, start: Option<&Values>) -> Vec<f32> {
        let fused = Isa::current() != Isa::Portable;
        let element = |(i, j): (usize, usize)| {
            let first = start.map_or(0.0, |c| c.data[i * b.cols + j]);
            (0..a.cols).fold(first, |sum, k| {
                let (x, y) = (a.data[i * a.cols + k], b.data[k * b.cols + j]);
                if fused { x.mul_add(y, sum) } else { x * y + sum }
            })
        };
        (0..a.rows).flat_map(|i| (0..b.cols).map(move |j| (i, j))).map(element).collect()
    }
    fn check([m, k, n]: [usize; 3], a_layout: Layout, b_layout: Layout) {
        let (a, b, c) = (Values::new(m, k, 1), Values::new(k, n, 2), Values::new(m, n, 3));
        let (a_data, b_data) = (a.laid_out(a_layout), b.laid_out(b_layout));
        let (a_view, b_view) = (a.view(&a_data, a_layout), b.view(&b_data, b_layout));
        let case = format!("{} [{m}, {k}] {a_layout:?} x [{k}, {n}] {b_layout:?}", Isa::current().name());

        let mut out = vec![f32::NAN; m * n];
        matmul(a_view, b_view, MatMut::new(&mut out, m, n));
        assert_eq!(bits(&out), bits(&naive(&a, &b, None)), "{case}");

        // C with gaps, which must stay as they are.
        let mut out = c.laid_out(RowsWithGaps);
        matmul_add(a_view, b_view, MatMut::strided(&mut out, m, n, n + 3));
        let expected = Values { rows: m, cols: n, data: naive(&a, &b, Some(&c)) };
        assert_eq!(bits(&out), bits(&expected.laid_out(RowsWithGaps)), "{case}, added");
    }

    #[test]
    fn small_sizes_in_every_layout() {
        on_each(|| {
            for (a_layout, b_layout) in LAYOUTS.into_iter().flat_map(|a| LAYOUTS.map(|b| (a, b))) {
                for m in [0, 1, 2, 3, 4, 5, 6, 7, 13] {
                    for k in [0, 1, 2, 7, 8, 9, 17] {
                        for n in [0, 1, 2, 7, 8, 9, 15, 16, 17, 33] {
                            check([m, k, n], a_layout, b_layout);
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn sizes_past_every_block() {
        on_each(|| {
            for (a_layout, b_layout) in [(Rows, Rows), (Rows, Columns), (Columns, Rows), (Scattered, Columns)]
            {
                check([130, 300, 70], a_layout, b_layout);
                check([7, 520, 1100], a_layout, b_layout);
                check([3, 520, 1100], a_layout, b_layout);
                check([26, 1030, 300], a_layout, b_layout);
            }
        });
    }

    #[test]
    fn a_row_alone_and_among_others_on_any_number_of_threads() {
        on_each(|| {
            // Large enough to be cut into tasks, by columns and by rows.
            let (k, n) = (384, 700);
            let (a, b) = (Values::new(700, k, 4), Values::new(k, n, 5));
            for (a_layout, b_layout) in LAYOUTS.into_iter().flat_map(|a| LAYOUTS.map(|b| (a, b))) {
                let (a_data, b_data) = (a.laid_out(a_layout), b.laid_out(b_layout));
                let (a_view, b_view) = (a.view(&a_data, a_layout), b.view(&b_data, b_layout));
                let product = |rows: usize, n_threads: usize| {
                    let mut out = vec![f32::NAN; rows * n];
                    on_threads(n_threads, || {
                        matmul(a_view.sub_rows(0, rows), b_view, MatMut::new(&mut out, rows, n))
                    });
                    bits(&out)
                };
                let whole = product(700, 1);
                for rows in [1, 2, 3, 4, 5, 6, 7, 64] {
                    assert_eq!(
                        product(rows, 1),
                        whole[..rows * n],
                        "{rows} rows, {a_layout:?} x {b_layout:?}"
                    );
                    assert_eq!(product(rows, 3), whole[..rows * n], "{rows} rows, 3 threads");
                }
                assert_eq!(product(700, 2), whole, "2 threads, {a_layout:?} x {b_layout:?}");
                assert_eq!(product(700, 5), whole, "5 threads, {a_layout:?} x {b_layout:?}");
            }
        });
    }

    #[test]
    fn agrees_with_f64() {
        on_each(|| {
            let (a, b) = (Values::new(20, 500, 6), Values::new(500, 40, 7));
            let mut out = vec![0.0; 800];
            matmul(Mat::new(&a.data, 20, 500), Mat::new(&b.data, 500, 40), MatMut::new(&mut out, 20, 40));
            for (ij, x) in out.iter().enumerate() {
                let (i, j) = (ij / 40, ij % 40);
                let exact: f64 =
                    (0..500).map(|k| f64::from(a.data[i * 500 + k]) * f64::from(b.data[k * 40 + j])).sum();
                assert!((f64::from(*x) - exact).abs() < 2e-5, "({i}, {j}): {x} for {exact}");
            }
        });
    }

    #[test]
    fn rounded_factors_are_multiplied_as_defined_and_rows_do_not_depend_on_each_other() {
        on_each(|| {
            if !Precision::Bf16.is_available() {
                return;
            }
            let round = |x: &f32| f64::from(half::bf16::from_f32(*x).to_f32());
            for (m, k, n) in [(1, 1, 1), (1, 2, 17), (13, 33, 100), (2, 700, 65), (500, 515, 260), (30, 0, 3)]
            {
                let (a, b, c) = (Values::new(m, k, 1), Values::new(k, n, 2), Values::new(m, n, 3));
                let exact = |i: usize, j: usize| -> f64 {
                    (0..k).map(|k| round(&a.data[i * a.cols + k]) * round(&b.data[k * n + j])).sum()
                };
                let mut first: Option<Vec<f32>> = None;
                for (a_layout, b_layout) in LAYOUTS.into_iter().flat_map(|a| LAYOUTS.map(|b| (a, b))) {
                    let (a_data, b_data) = (a.laid_out(a_layout), b.laid_out(b_layout));
                    let (a_view, b_view) = (a.view(&a_data, a_layout), b.view(&b_data, b_layout));
                    let product = |rows: usize, n_threads: usize, start: Start| {
                        let mut out = c.data[..rows * n].to_vec();
                        let c = MatMut::new(&mut out, rows, n);
                        on_threads(n_threads, || {
                            parallel(a_view.sub_rows(0, rows), b_view, c, start, Precision::Bf16)
                        });
                        out
                    };
                    let whole = product(m, 1, Start::Zero);
                    let case = format!("{m} x {k} x {n}, {a_layout:?} x {b_layout:?}");
                    // Layouts differ in nothing but how they are read.
                    let first = first.get_or_insert_with(|| whole.clone());
                    assert_eq!(bits(&whole), bits(first), "{case}");
                    assert_eq!(bits(&product(m, 3, Start::Zero)), bits(&whole), "{case}, 3 threads");
                    for rows in [1, m.min(7), m / 2] {
                        let alone = product(rows, 2, Start::Zero);
                        assert_eq!(bits(&alone), bits(&whole[..rows * n]), "{rows} rows of {case}");
                    }
                    let added = product(m, 2, Start::C);
                    for (ij, c) in c.data.iter().enumerate().step_by(1 + m * n / 2000) {
                        let exact = exact(ij / n, ij % n);
                        assert!(
                            (f64::from(whole[ij]) - exact).abs() < 1e-4,
                            "{case}: {} for {exact}",
                            whole[ij]
                        );
                        let exact = exact + f64::from(*c);
                        assert!(
                            (f64::from(added[ij]) - exact).abs() < 1e-4,
                            "{case}: {} for {exact}",
                            added[ij]
                        );
                    }
                }
            }
        });
    }

    #[test]
    #[should_panic(expected = "matmul: a [2, 3], b [2, 3], c [2, 3]")]
    fn shapes_must_fit() {
        let x = [0.0; 6];
        matmul(Mat::new(&x, 2, 3), Mat::new(&x, 2, 3), MatMut::new(&mut [0.0; 6], 2, 3));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn random_shapes(m in 0usize..40, k in 0usize..90, n in 0usize..90, a in 0usize..4, b in 0usize..4) {
            on_each(|| check([m, k, n], LAYOUTS[a], LAYOUTS[b]));
        }
    }
}
