//! Attention against its definition in f64, finite differences and itself over a cache.

use super::*;
use crate::isa::on_each;
use crate::reference::{assert_all_close, bits, on_threads, values};

pub(super) fn dims(batch: usize, seq_len: usize, n_head: usize, n_kv_head: usize, head_dim: usize) -> Dims {
    Dims { batch, seq_len, ..Dims::new(n_head, n_kv_head, head_dim) }
}

/// The same with a window, with a soft cap and with both.
pub(super) fn causal_variants(plain: Dims) -> [Dims; 4] {
    let (window, softcap) = (Some(20), Some(1.5));
    [plain, Dims { window, ..plain }, Dims { softcap, ..plain }, Dims { window, softcap, ..plain }]
}

/// Those, and both ways with and without a soft cap.
fn variants(plain: Dims) -> Vec<Dims> {
    let both_ways = Dims { causal: false, ..plain };
    let mut all = causal_variants(plain).to_vec();
    all.extend([both_ways, Dims { softcap: Some(1.5), ..both_ways }]);
    all
}

/// Whole sequences in a fused buffer: `(out, lse)`.
fn run(dims: &Dims, qkv: &[f32], sinks: Option<&[f32]>) -> (Vec<f32>, Vec<f32>) {
    let [q, k, v] = dims.split_qkv(qkv);
    let rows = dims.batch * dims.seq_len;
    let mut out = vec![f32::NAN; rows * dims.n_head * dims.head_dim];
    let mut lse = vec![f32::NAN; rows * dims.n_head];
    forward(dims, Input { q, k, v, sinks }, &mut out, Some(&mut lse));
    (out, lse)
}

/// No sinks, and some of the size of scores.
fn with_sinks(dims: &Dims) -> [Option<Vec<f32>>; 2] {
    [None, Some(values(dims.n_head, 8))]
}

/// The definition, in f64: `(out, lse)`.
fn reference(dims: &Dims, qkv: &[f64], sinks: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
    let Dims { batch, seq_len, n_head, n_kv_head, head_dim, .. } = *dims;
    let at = |b: usize, t: usize, head: usize, d: usize| {
        qkv[(b * seq_len + t) * dims.qkv_width() + head * head_dim + d]
    };
    let mut out = vec![0.0; batch * seq_len * n_head * head_dim];
    let mut lse = vec![0.0; batch * n_head * seq_len];
    for (b, h, i) in each(batch, n_head, seq_len) {
        let kv = h / (n_head / n_kv_head);
        let score = |t: usize| {
            let dot: f64 = (0..head_dim).map(|d| at(b, i, h, d) * at(b, t, n_head + kv, d)).sum();
            let score = dot * f64::from(dims.scale);
            match dims.softcap.map(f64::from) {
                Some(cap) => (cap * (score / cap).tanh()).exp(),
                None => score.exp(),
            }
        };
        let first = dims.window.map_or(0, |window| (i + 1).saturating_sub(window));
        let last = if dims.causal { i } else { seq_len - 1 };
        let total = (first..=last).map(score).sum::<f64>() + sinks.map_or(0.0, |sinks| sinks[h].exp());
        lse[(b * n_head + h) * seq_len + i] = total.ln();
        for d in 0..head_dim {
            let sum: f64 = (first..=last).map(|t| score(t) * at(b, t, n_head + n_kv_head + kv, d)).sum();
            out[((b * seq_len + i) * n_head + h) * head_dim + d] = sum / total;
        }
    }
    (out, lse)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

fn each(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

#[test]
fn forward_agrees_with_f64() {
    on_each(|| {
        let shapes =
            [(1, 1, 1, 1, 1), (2, 3, 2, 1, 5), (1, 17, 3, 3, 8), (2, 65, 4, 2, 16), (1, 200, 2, 1, 24)];
        for (batch, seq_len, n_head, n_kv_head, head_dim) in shapes {
            for dims in variants(dims(batch, seq_len, n_head, n_kv_head, head_dim)) {
                let qkv = values(batch * seq_len * dims.qkv_width(), 1);
                for sinks in with_sinks(&dims) {
                    let (out, lse) = run(&dims, &qkv, sinks.as_deref());
                    let sinks = sinks.map(|sinks| wide(&sinks));
                    let (out_exact, lse_exact) = reference(&dims, &wide(&qkv), sinks.as_deref());
                    assert_all_close(&out, &out_exact, 3e-6, "out");
                    assert_all_close(&lse, &lse_exact, 3e-6, "lse");
                }
            }
        }
    });
}

/// Copies keys and values of a fused buffer to caches of some capacity, NaN where nothing was written.
fn caches(dims: &Dims, qkv: &[f32], n: usize, capacity: usize) -> [Vec<f32>; 2] {
    let [_, k, v] = dims.split_qkv(qkv);
    let Dims { batch, n_kv_head, head_dim, .. } = *dims;
    [k, v].map(|heads| {
        let mut cache = vec![f32::NAN; batch * n_kv_head * capacity * head_dim];
        for (b, h, t) in each(batch, n_kv_head, n) {
            let from = b * heads.batch_stride + h * heads.head_stride + t * heads.pos_stride;
            let to = ((b * n_kv_head + h) * capacity + t) * head_dim;
            cache[to..to + head_dim].copy_from_slice(&heads.data[from..from + head_dim]);
        }
        cache
    })
}

/// Queries `first..last` over a cache that holds the keys up to them and NaN beyond.
fn run_cached(
    dims: &Dims,
    qkv: &[f32],
    sinks: Option<&[f32]>,
    Range { start: first, end: last }: Range<usize>,
) -> Vec<f32> {
    let Dims { batch, n_head, n_kv_head, head_dim, .. } = *dims;
    let capacity = dims.seq_len + 5;
    let [k, v] = caches(dims, qkv, last, capacity);
    let cache = |data| Heads {
        data,
        batch_stride: n_kv_head * capacity * head_dim,
        head_stride: capacity * head_dim,
        pos_stride: head_dim,
    };
    let mut q = dims.split_qkv(qkv)[0];
    q.data = &q.data[first * q.pos_stride..];
    let step = Dims { seq_len: last - first, start: first, ..*dims };
    let mut out = vec![f32::NAN; batch * step.seq_len * n_head * head_dim];
    forward(&step, Input { q, k: cache(&k), v: cache(&v), sinks }, &mut out, None);
    out
}

#[test]
fn cached_is_whole_to_the_bit_and_never_reads_ahead() {
    on_each(|| {
        // With heads of 4 + 1 and of 8 + 1 vectors, and smaller ones.
        let shapes = [(2, 4, 2, 16), (1, 7, 1, 20), (1, 3, 3, 7), (1, 2, 1, 40), (1, 2, 1, 72)];
        let all = shapes.map(|(batch, n_head, n_kv_head, head_dim)| {
            causal_variants(dims(batch, 150, n_head, n_kv_head, head_dim))
        });
        for dims in all.into_iter().flatten() {
            let Dims { batch, n_head, head_dim, .. } = dims;
            let qkv = values(batch * dims.seq_len * dims.qkv_width(), 2);
            // Half of the cases have sinks.
            let sinks = with_sinks(&dims)[usize::from(dims.softcap.is_some())].clone();
            let (whole, _) = run(&dims, &qkv, sinks.as_deref());
            let width = n_head * head_dim;
            let rows = |b: usize, first: usize, last: usize| {
                bits(&whole[(b * dims.seq_len + first) * width..(b * dims.seq_len + last) * width])
            };
            let steps = (0..150).map(|i| (i, i + 1));
            for (first, last) in steps.chain([(0, 2), (0, 64), (3, 70), (64, 66), (100, 150)]) {
                let out = run_cached(&dims, &qkv, sinks.as_deref(), first..last);
                for (b, out) in out.chunks(out.len() / batch).enumerate() {
                    assert_eq!(bits(out), rows(b, first, last), "queries {first}..{last} of {dims:?}");
                }
            }
        }
    });
}

#[test]
fn a_long_cache_gives_a_query_the_same_bits_on_any_number_of_threads_and_among_others() {
    on_each(|| {
        // Groups of one, two, five, and of seven, which is cut into four and three; odd sizes of heads, long enough that
        // steps are shared out one by one.
        for (batch, n_head, n_kv_head, head_dim) in
            [(1, 3, 3, 72), (2, 2, 1, 80), (1, 5, 1, 64), (1, 14, 2, 17)]
        {
            let n_keys = 2900;
            let shape = dims(batch, 2, n_head, n_kv_head, head_dim);
            let q = values(batch * 2 * n_head * head_dim, 11);
            let [k, v] = [12, 13].map(|seed| values(batch * n_kv_head * n_keys * head_dim, seed));
            let heads = |data, n_head, n: usize| Heads {
                data,
                batch_stride: n_head * n * head_dim,
                head_stride: n * head_dim,
                pos_stride: head_dim,
            };
            let [k, v] = [&k, &v].map(|data| heads(data, n_kv_head, n_keys));
            for window in [None, Some(2500)] {
                let run = |seq_len: usize, n_threads: usize| {
                    let dims = Dims { seq_len, start: n_keys - seq_len, window, ..shape };
                    let mut q = heads(&q, n_head, 2);
                    q.data = &q.data[(2 - seq_len) * head_dim..];
                    let mut out = vec![f32::NAN; batch * seq_len * n_head * head_dim];
                    on_threads(n_threads, || forward(&dims, Input { q, k, v, sinks: None }, &mut out, None));
                    out
                };
                // The last of two queries, which are a prompt and go another way.
                let width = n_head * head_dim;
                let two = run(2, 1);
                let last: Vec<u32> = two.chunks(2 * width).flat_map(|rows| bits(&rows[width..])).collect();
                for n_threads in [1, 2, 3, 7, 16] {
                    assert_eq!(bits(&run(1, n_threads)), last, "{n_threads} threads, {shape:?}");
                }
            }
        }
    });
}

#[test]
fn later_keys_of_the_same_block_do_not_leak() {
    on_each(|| {
        let dims = dims(1, 70, 2, 1, 8);
        let mut qkv = values(70 * dims.qkv_width(), 3);
        let (clean, _) = run(&dims, &qkv, None);
        qkv[40 * dims.qkv_width()..].fill(f32::NAN);
        let (out, _) = run(&dims, &qkv, None);
        assert_eq!(bits(&out[..40 * 16]), bits(&clean[..40 * 16]));
        assert!(out[40 * 16..].iter().all(|x| x.is_nan()));
    });
}

#[test]
fn a_sequence_alone_and_in_a_batch_on_any_number_of_threads() {
    for causal in [true, false] {
        on_each(|| alone_and_in_a_batch(Dims { causal, ..dims(3, 90, 4, 2, 16) }));
    }
}

fn alone_and_in_a_batch(many: Dims) {
    let one = Dims { batch: 1, ..many };
    let len = 90 * many.qkv_width();
    let qkv = values(3 * len, 4);
    let dout = values(3 * 90 * 64, 5);
    let both = |dims: &Dims, qkv: &[f32], dout: &[f32], n_threads: usize| {
        on_threads(n_threads, || {
            let (out, lse) = run(dims, qkv, None);
            let mut dqkv = vec![f32::NAN; qkv.len()];
            backward(dims, qkv, Saved { out: &out, lse: &lse }, dout, &mut dqkv);
            (bits(&out), bits(&dqkv))
        })
    };
    let (out, dqkv) = both(&many, &qkv, &dout, 1);
    assert!((out.clone(), dqkv.clone()) == both(&many, &qkv, &dout, 2));
    for b in 0..3 {
        let (out_rows, qkv_rows) = (b * 90 * 64..(b + 1) * 90 * 64, b * len..(b + 1) * len);
        let alone = both(&one, &qkv[qkv_rows.clone()], &dout[out_rows.clone()], 1);
        assert!(alone.0 == out[out_rows] && alone.1 == dqkv[qkv_rows]);
    }
}

#[test]
fn backward_agrees_with_finite_differences() {
    on_each(|| {
        let shapes = [(1, 1, 1, 1, 3), (2, 9, 4, 2, 5), (1, 70, 2, 1, 8)];
        let all = shapes.map(|(batch, seq_len, n_head, n_kv_head, head_dim)| {
            variants(dims(batch, seq_len, n_head, n_kv_head, head_dim))
        });
        for dims in all.into_iter().flatten() {
            for sinks in with_sinks(&dims) {
                check_backward(&dims, sinks);
            }
        }
    });
}

fn check_backward(dims: &Dims, sinks: Option<Vec<f32>>) {
    const STEP: f64 = 1e-5;
    let qkv = values(dims.batch * dims.seq_len * dims.qkv_width(), 6);
    let (out, lse) = run(dims, &qkv, sinks.as_deref());
    let dout = values(out.len(), 7);
    let mut dqkv = vec![f32::NAN; qkv.len()];
    let saved = Saved { out: &out, lse: &lse };
    backward(dims, &qkv, saved, &dout, &mut dqkv);
    let loss = |qkv: &[f64], sinks: Option<&[f64]>| -> f64 {
        reference(dims, qkv, sinks).0.iter().zip(&dout).map(|(o, d)| o * f64::from(*d)).sum()
    };
    let (mut qkv, mut wide_sinks) = (wide(&qkv), sinks.as_deref().map(wide));
    // Every element of small cases, a sample of the large one.
    for i in (0..qkv.len()).step_by(qkv.len().div_ceil(200)) {
        let x = qkv[i];
        qkv[i] = x + STEP;
        let up = loss(&qkv, wide_sinks.as_deref());
        qkv[i] = x - STEP;
        let slope = (up - loss(&qkv, wide_sinks.as_deref())) / (2.0 * STEP);
        qkv[i] = x;
        assert!((f64::from(dqkv[i]) - slope).abs() < 1e-5, "dqkv[{i}]: {} for {slope}", dqkv[i]);
    }
    let (Some(sinks), Some(wide_sinks)) = (&sinks, &mut wide_sinks) else { return };
    let mut dsinks = vec![f32::NAN; sinks.len()];
    sink_gradient(dims, sinks, saved, &dout, &mut dsinks);
    for head in 0..sinks.len() {
        let sink = wide_sinks[head];
        wide_sinks[head] = sink + STEP;
        let up = loss(&qkv, Some(wide_sinks));
        wide_sinks[head] = sink - STEP;
        let slope = (up - loss(&qkv, Some(wide_sinks))) / (2.0 * STEP);
        wide_sinks[head] = sink;
        assert!((f64::from(dsinks[head]) - slope).abs() < 1e-5, "{} for {slope}", dsinks[head]);
    }
}
