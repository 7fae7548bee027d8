//! Views of matrices in slices: [`Mat`] to read, [`MatMut`] to write.

use std::marker::PhantomData;

use crate::simd::{MAX_LANES, Rows};

/// A matrix to read: element `(i, j)` lies at `data[i * row_stride + j * col_stride]`.
///
/// Copying a view or transposing it moves no data.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A matrix stored row after row without gaps.
    ///
    /// # Panics
    /// If `data` has not exactly `rows * cols` elements.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() == rows * cols, "Mat::new: {} elements for [{rows}, {cols}]", data.len());
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A matrix with any distances, in elements, between rows and between columns.
    ///
    /// # Panics
    /// If the last element lies past the end of `data`.
    pub fn strided(data: &'a [f32], [rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2]) -> Self {
        let end = end_of([rows, cols], [row_stride, col_stride]);
        assert!(
            end.is_some_and(|end| end <= data.len()),
            "Mat::strided: [{rows}, {cols}] with strides [{row_stride}, {col_stride}] in {} elements",
            data.len()
        );
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The distance between rows, in elements.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The distance between columns, in elements.
    pub(crate) fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// Whether rows or columns are contiguous.
    pub(crate) fn has_unit_stride(&self) -> bool {
        self.row_stride == 1 || self.col_stride == 1
    }

    /// Rows `first..first + n`.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn sub_rows(self, first: usize, n: usize) -> Self {
        assert!(first + n <= self.rows, "rows {first}..{} of {}", first + n, self.rows);
        let offset = (first * self.row_stride).min(self.data.len());
        Self { data: &self.data[offset..], rows: n, ..self }
    }

    /// Columns `first..first + n`.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn sub_cols(self, first: usize, n: usize) -> Self {
        self.t().sub_rows(first, n).t()
    }

    /// The rows before `at` and those from it on.
    pub(crate) fn split_rows(self, at: usize) -> (Self, Self) {
        (self.sub_rows(0, at), self.sub_rows(at, self.rows - at))
    }

    /// The columns before `at` and those from it on.
    pub(crate) fn split_cols(self, at: usize) -> (Self, Self) {
        (self.sub_cols(0, at), self.sub_cols(at, self.cols - at))
    }

    /// Element `(i, j)`; checked against the data only, not against the shape.
    pub(crate) fn at(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.row_stride + j * self.col_stride]
    }

    /// The elements of a row.
    ///
    /// # Panics
    /// If they do not lie side by side.
    pub(crate) fn row(&self, i: usize) -> &'a [f32] {
        assert!(self.col_stride == 1 && i < self.rows, "row {i} of {}", self.rows);
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// Where the first rows begin, for a transposing load; past the last row, its start again.
    #[inline(always)]
    pub(crate) fn starts(&self) -> Rows {
        let mut starts = [self.as_ptr(); MAX_LANES];
        for (r, start) in starts.iter_mut().enumerate() {
            *start = self.as_ptr().wrapping_add(r.min(self.rows - 1) * self.row_stride);
        }
        starts
    }

    /// Where element `(0, 0)` lies. Element `(i, j)` is readable at offset
    /// `i * row_stride + j * col_stride` for all `i < rows`, `j < cols`: every constructor checks it.
    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }
}

/// A matrix to write: rows of contiguous elements, `row_stride` apart.
///
/// Exclusive over its *elements*, not over the span from first to last. So a matrix can be cut between
/// columns and both parts be written at once, which a `&mut [f32]` could not express.
#[derive(Debug)]
pub struct MatMut<'a> {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    elements: PhantomData<&'a mut [f32]>,
}

// SAFETY: like `&mut [f32]`, a `MatMut` is the only way to its elements, and floats may change threads.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// A matrix stored row after row without gaps.
    ///
    /// # Panics
    /// If `data` has not exactly `rows * cols` elements.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() == rows * cols, "MatMut::new: {} elements for [{rows}, {cols}]", data.len());
        Self::strided(data, rows, cols, cols)
    }

    /// A matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If rows overlap or the last element lies past the end of `data`.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let end = end_of([rows, cols], [row_stride, 1]);
        assert!(
            end.is_some_and(|end| end <= data.len()) && (rows <= 1 || row_stride >= cols),
            "MatMut::strided: [{rows}, {cols}] with rows {row_stride} apart in {} elements",
            data.len()
        );
        // SAFETY: rows don't overlap and lie in `data`, which stays borrowed for 'a.
        unsafe { Self::from_raw(data.as_mut_ptr(), rows, cols, row_stride) }
    }

    /// A matrix at a pointer, for kernels whose tasks write disjoint parts of one slice.
    ///
    /// # Safety
    /// For 'a the elements `ptr[i * row_stride + j]`, `i < rows`, `j < cols`, must be valid, distinct, and
    /// reached through this view only. If they are not initialised, [`zero`](Self::zero) must come before all else but
    /// cutting the matrix.
    pub(crate) unsafe fn from_raw(ptr: *mut f32, rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { ptr, rows, cols, row_stride, elements: PhantomData }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The distance between rows, in elements.
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Sets all elements to zero.
    pub(crate) fn zero(&mut self) {
        for i in 0..self.rows {
            // SAFETY: by the contract of `from_raw` the row may be written.
            unsafe { self.ptr.wrapping_add(i * self.row_stride).write_bytes(0, self.cols) };
        }
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // Wrapping, as rows without columns may lie anywhere.
        let start = self.ptr.wrapping_add(i * self.row_stride);
        // SAFETY: by the contract of `from_raw` the row is valid and ours alone; it is borrowed from `self`.
        unsafe { std::slice::from_raw_parts_mut(start, self.cols) }
    }

    /// Rows `first..first + n` for a shorter time.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn sub_rows(&mut self, first: usize, n: usize) -> MatMut<'_> {
        assert!(first + n <= self.rows, "rows {first}..{} of {}", first + n, self.rows);
        // Wrapping, as the offset of an empty range may lie past the end; such a pointer is never used.
        MatMut {
            ptr: self.ptr.wrapping_add(first * self.row_stride),
            rows: n,
            elements: PhantomData,
            ..*self
        }
    }

    /// Columns `first..first + n` for a shorter time.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn sub_cols(&mut self, first: usize, n: usize) -> MatMut<'_> {
        assert!(first + n <= self.cols, "columns {first}..{} of {}", first + n, self.cols);
        MatMut { ptr: self.ptr.wrapping_add(first), cols: n, elements: PhantomData, ..*self }
    }

    /// The rows before `at` and those from it on.
    ///
    /// # Panics
    /// If there are fewer than `at`.
    pub(crate) fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows, "cut before row {at} of {}", self.rows);
        let ptr = self.ptr.wrapping_add(at * self.row_stride);
        (Self { rows: at, ..self }, Self { ptr, rows: self.rows - at, ..self })
    }

    /// The columns before `at` and those from it on.
    ///
    /// # Panics
    /// If there are fewer than `at`.
    pub(crate) fn split_cols(self, at: usize) -> (Self, Self) {
        assert!(at <= self.cols, "cut before column {at} of {}", self.cols);
        let ptr = self.ptr.wrapping_add(at);
        (Self { cols: at, ..self }, Self { ptr, cols: self.cols - at, ..self })
    }

    /// Where element `(0, 0)` lies; element `(i, j)` is writable at offset `i * row_stride + j`.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.ptr
    }
}

/// One past the offset of the last element, `None` if that overflows.
fn end_of([rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2]) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let row = (rows - 1).checked_mul(row_stride)?;
    (cols - 1).checked_mul(col_stride)?.checked_add(row)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_reach_the_last_element_and_no_further() {
        let data = [0.0; 12];
        assert_eq!(Mat::strided(&data, [3, 2], [5, 1]).t().rows(), 2);
        assert!(std::panic::catch_unwind(|| Mat::strided(&data, [3, 3], [5, 1])).is_err());
        assert!(std::panic::catch_unwind(|| Mat::strided(&data, [usize::MAX, 3], [5, 1])).is_err());
        assert!(std::panic::catch_unwind(|| Mat::new(&data, 3, 3)).is_err());
        for row_stride in [3, 5] {
            let panics =
                std::panic::catch_unwind(|| MatMut::strided(&mut [0.0; 12], 3, 4, row_stride).rows());
            assert!(panics.is_err(), "rows {row_stride} apart");
        }
        Mat::strided(&[], [0, 7], [7, 1]).sub_cols(3, 4);
    }

    #[test]
    fn split_parts_are_disjoint_and_complete() {
        let mut data = [0.0; 12];
        let (left, mut right) = MatMut::new(&mut data, 3, 4).split_cols(1);
        let (mut top, mut bottom) = left.split_rows(2);
        for (part, value) in [(&mut top, 1.0), (&mut bottom, 2.0), (&mut right, 3.0)] {
            (0..part.rows()).for_each(|i| part.row(i).iter_mut().for_each(|x| *x += value));
        }
        assert_eq!(data, [1., 3., 3., 3., 1., 3., 3., 3., 2., 3., 3., 3.]);
    }
}
