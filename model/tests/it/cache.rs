//! Generating with a cache: the logits are those without one, bit for bit, and the cache's memory is
//! written in place.

use burn::prelude::*;
use burn::tensor::ops::FloatTensor;
use model::cache::{Kind, MAX_STEP};
use model::config::Position;
use model::position::RopeScaling;
use model::rng::Rng;
use model::{Cache, Config, FusedOps, Transformer};

use crate::cases::{self, Ids};
use crate::numbers::{bits, primitive, values};

on_cpu!(
    bar_62_cached_equals_uncached,
    next_logits_are_those_of_the_last_position,
    after_truncating_another_text_can_follow,
    the_memory_stays_where_it_is,
    sliding_layers_hold_their_window_only,
    what_is_left_of_an_evicting_cache_stands_side_by_side,
    a_window_that_fits_evicts_nothing_it_sees,
    models_without_rotary_positions_cannot_evict,
    packed_caches_do_not_depend_on_the_pieces_and_are_close,
    packed_caches_evict,
);

const SEQ_LEN: usize = 150;

/// Logits of a text fed in pieces of the given lengths, in the order of `forward`.
fn in_pieces<B: FusedOps>(model: &Transformer<B>, ids: &Ids, pieces: &[usize]) -> Vec<u32> {
    in_pieces_over(Kind::F32, model, ids, pieces)
}

fn in_pieces_over<B: FusedOps>(kind: Kind, model: &Transformer<B>, ids: &Ids, pieces: &[usize]) -> Vec<u32> {
    let device = Default::default();
    let mut cache = Cache::new(model.config(), ids.batch, ids.seq_len, &device).stored_as(kind, &device);
    let vocab_size = model.config().vocab_size;
    let mut logits = vec![0; ids.batch * ids.seq_len * vocab_size];
    let mut start = 0;
    for &n in pieces {
        let new = bits(model.forward_cached(ids.positions(start..start + n).tensor(), &mut cache));
        for (b, new) in new.chunks(n * vocab_size).enumerate() {
            let at = (b * ids.seq_len + start) * vocab_size;
            logits[at..at + new.len()].copy_from_slice(new);
        }
        start += n;
        assert_eq!(cache.len(), start);
    }
    assert_eq!(start, ids.seq_len, "the pieces make up the text");
    logits
}

fn equal_pieces(n: usize) -> Vec<usize> {
    (0..SEQ_LEN).step_by(n).map(|start| n.min(SEQ_LEN - start)).collect()
}

fn random_pieces(rng: &mut Rng) -> Vec<usize> {
    let mut pieces = Vec::new();
    let mut left = SEQ_LEN;
    while left > 0 {
        // Mostly short ones, to which other kernels apply than to long ones.
        let max = [1, 4, 9, 70][rng.below(4) as usize];
        let n = (1 + rng.below(max) as usize).min(left);
        pieces.push(n);
        left -= n;
    }
    pieces
}

fn bar_62_cached_equals_uncached<B: FusedOps>() {
    let rng = &mut Rng::new(1);
    for config in cases::all() {
        let model = cases::lively::<B>(&config, 2);
        for batch in [1, 3] {
            let ids = Ids::random(&config, batch, SEQ_LEN, 3);
            let whole = bits(model.forward(ids.tensor()));
            let equal = [1, 2, 7, 64, SEQ_LEN].map(equal_pieces);
            let random = std::iter::repeat_with(|| random_pieces(rng)).take(3);
            for pieces in equal.into_iter().chain(random) {
                assert!(in_pieces(&model, &ids, &pieces) == whole, "batch {batch}, {pieces:?}, {config:?}");
            }
        }
    }
}

fn next_logits_are_those_of_the_last_position<B: FusedOps>() {
    for config in cases::all() {
        let model = cases::lively::<B>(&config, 4);
        let ids = Ids::random(&config, 3, 20, 5);
        let mut cache = Cache::new(&config, 3, 20, &Default::default());
        let next = bits(model.next_logits(ids.tensor(), &mut cache));
        let all = model.forward(ids.tensor()).reshape([3, 20, config.vocab_size]).narrow(1, 19, 1);
        assert!(next == bits(all), "{config:?}");
    }
}

fn after_truncating_another_text_can_follow<B: FusedOps>() {
    for config in cases::all() {
        let model = cases::lively::<B>(&config, 6);
        let (first, second) = (Ids::random(&config, 2, 40, 7), Ids::random(&config, 2, 25, 8));
        // As long as the second text makes it: angles may depend on the length.
        let mut cache = Cache::new(&config, 2, 55, &Default::default());
        let _ = model.forward_cached(first.tensor(), &mut cache);
        cache.truncate(30);
        cache.truncate(50); // There is nothing to bring back.
        assert_eq!(cache.len(), 30);
        let after = bits(model.forward_cached(second.tensor(), &mut cache));

        let rows = (0..2)
            .flat_map(|b| [first.sequence(b).positions(0..30).values, second.sequence(b).values].concat());
        let joined = Ids { batch: 2, seq_len: 55, values: rows.collect() };
        let whole = model.forward(joined.tensor()).reshape([2, 55, config.vocab_size]);
        assert!(after == bits(whole.narrow(1, 30, 25)), "{config:?}");
    }
}

fn the_memory_stays_where_it_is<B: FusedOps + Address>() {
    for config in cases::all() {
        let model = cases::lively::<B>(&config, 9);
        let ids = Ids::random(&config, 2, 56, 10);
        let mut cache = Cache::new(&config, 2, 100, &Default::default());
        let before = addresses(&cache);
        let _ = model.forward_cached(ids.positions(0..6).tensor(), &mut cache);
        for t in 6..56 {
            let _ = model.next_logits(ids.positions(t..t + 1).tensor(), &mut cache);
        }
        assert_eq!(before, addresses(&cache), "after 50 tokens");
        cache.truncate(6);
        let _ = model.forward_cached(ids.positions(6..56).tensor(), &mut cache);
        assert_eq!(before, addresses(&cache), "after going back and on");
    }
}

/// Where the keys and the values of each layer lie. The handles are gone on return, or the next step
/// would have to copy.
fn addresses<B: Address>(cache: &Cache<B>) -> Vec<[usize; 2]> {
    let n_layer = 2; // As all cases have.
    let layers = (0..n_layer).map(|i| cache.layer(i));
    layers.map(|(k, v)| [k, v].map(|t| B::address(&primitive(t)))).collect()
}

/// Where a tensor's elements lie.
trait Address: Backend {
    fn address(t: &FloatTensor<Self>) -> usize;
}

#[cfg(feature = "flex")]
impl Address for burn::backend::Flex {
    fn address(t: &FloatTensor<Self>) -> usize {
        t.storage::<f32>().as_ptr() as usize
    }
}

#[cfg(feature = "ndarray")]
impl Address for burn::backend::NdArray {
    fn address(t: &FloatTensor<Self>) -> usize {
        match t {
            burn::backend::ndarray::NdArrayTensor::F32(storage) => storage.view().as_ptr() as usize,
            other => panic!("an f32 tensor, not {other:?}"),
        }
    }
}

/// More positions than a window and a step take: the oldest are gone, and the logits are those of the whole text. What is
/// no longer there cannot be gone back to.
fn sliding_layers_hold_their_window_only<B: FusedOps>() {
    let config = Config { context: 800, ..cases::gemma_like() };
    let model = cases::lively::<B>(&config, 9);
    let ids = Ids::random(&config, 2, 760, 10);
    let whole = bits(model.forward(ids.tensor()));
    for pieces in [vec![760], vec![530, 1, 1, 200, 28], vec![100; 7].into_iter().chain([60]).collect()] {
        assert!(in_pieces(&model, &ids, &pieces) == whole, "{pieces:?}");
    }
    let mut cache = Cache::new(&config, 2, 760, &Default::default());
    let _ = model.forward_cached(ids.tensor(), &mut cache);
    let [sliding, full] = [0, 1].map(|layer_idx| cache.layer(layer_idx).0.dims()[2]);
    assert_eq!((sliding, full), (19 + MAX_STEP, 760));
    cache.truncate(740);
    assert_eq!(cache.len(), 740);
    cache.truncate(100);
    assert!(cache.is_empty());
}

/// With one layer, keys and values follow from tokens alone: the logits over what a cache has kept are those of a text of
/// just these tokens, at the positions that they have in it.
fn what_is_left_of_an_evicting_cache_stands_side_by_side<B: FusedOps>() {
    const CAPACITY: usize = 24;
    const N_SINK: usize = 3;
    let plain = Config { n_layer: 1, ..cases::llama_like() };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 40,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        truncate: true,
    };
    let partly = Config { rotary_dim: Some(4), rope_scaling: Some(yarn), ..plain.clone() };
    let unturned = Config { position: Position::None, ..plain.clone() };
    for config in [plain, partly, unturned] {
        let model = cases::lively::<B>(&config, 11);
        let ids = Ids::random(&config, 1, 150, 12);
        let mut cache = Cache::evicting(&config, 1, CAPACITY, N_SINK, &Default::default()).expect("rotary");
        let mut kept: Vec<i32> = Vec::new();
        let mut start = 0;
        for n in [1, 9, 5, 8, 4, 1, 1, 7].into_iter().cycle().take(30) {
            let got = values(model.forward_cached(ids.positions(start..start + n).tensor(), &mut cache));
            if kept.len() + n > CAPACITY {
                let n_dropped = (kept.len() + n - CAPACITY).max(CAPACITY / 8);
                kept.drain(N_SINK..N_SINK + n_dropped);
            }
            kept.extend_from_slice(&ids.values[start..start + n]);
            start += n;
            let text = Ids { batch: 1, seq_len: kept.len(), values: kept.clone() };
            let all = values(model.forward(text.tensor()));
            let want = &all[all.len() - got.len()..];
            let worst = got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{worst:e} after {start} of {config:?}");
        }
        assert_eq!((cache.len(), cache.n_evicted()), (start, start - kept.len()));
        cache.truncate(start - 1);
        assert!(cache.is_empty(), "what stood there was moved");
    }
}

/// Where every layer slides and the cache holds the window, what is dropped was out of sight: any number of positions get
/// the logits of the whole text.
fn a_window_that_fits_evicts_nothing_it_sees<B: FusedOps>() {
    let config = Config { window: Some(20), context: 1300, ..cases::llama_like() };
    let model = cases::lively::<B>(&config, 13);
    let ids = Ids::random(&config, 1, 1250, 14);
    let whole = bits(model.forward(ids.tensor()));
    let mut cache = Cache::evicting(&config, 1, 32, 4, &Default::default()).expect("rotary");
    let mut start = 0;
    let mut pieces = Vec::new();
    for n in [1, 700, 30, 1, 518] {
        pieces.extend(bits(model.forward_cached(ids.positions(start..start + n).tensor(), &mut cache)));
        start += n;
    }
    assert!(pieces == whole);
    assert_eq!((cache.len(), cache.n_evicted()), (1250, 0));
}

fn models_without_rotary_positions_cannot_evict<B: FusedOps>() {
    let evicting =
        |config: &Config, capacity| Cache::<B>::evicting(config, 1, capacity, 4, &Default::default());
    let error = evicting(&cases::gpt2_like(), 20).expect_err("learned positions");
    assert!(error.to_string().contains("Learned"), "{error}");
    let error = evicting(&cases::llama_like(), 5).expect_err("no room");
    assert!(error.to_string().contains("5 positions with 4 sinks"), "{error}");
}

/// The error of the logits beside their size, as roots of mean squares.
fn relative_error(got: &[f32], want: &[f32]) -> f32 {
    let size = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    size(&mut got.iter().zip(want).map(|(got, want)| got - want)) / size(&mut want.iter().copied())
}

fn packed_caches_do_not_depend_on_the_pieces_and_are_close<B: FusedOps>() {
    for config in cases::all() {
        let model = cases::lively::<B>(&config, 15);
        let ids = Ids::random(&config, 2, SEQ_LEN, 16);
        let whole = values(model.forward(ids.tensor()));
        for (kind, most) in [(Kind::F16, 2e-3), (Kind::Q8, 5e-2)] {
            let at_once = in_pieces_over(kind, &model, &ids, &[SEQ_LEN]);
            for n in [1, 7, 64] {
                let pieces = in_pieces_over(kind, &model, &ids, &equal_pieces(n));
                assert!(pieces == at_once, "{kind:?}, pieces of {n}, {config:?}");
            }
            let logits: Vec<f32> = at_once.iter().copied().map(f32::from_bits).collect();
            let error = relative_error(&logits, &whole);
            assert!(error > 0.0 && error < most, "{kind:?}: {error:e}, {config:?}");
        }
    }
}

/// A packed cache drops the same positions as another, and what stays is what was stored, but for the rounding of keys that
/// were turned back.
fn packed_caches_evict<B: FusedOps>() {
    let config = Config { n_layer: 1, ..cases::llama_like() };
    let sliding = Config { window: Some(20), context: 1300, ..config.clone() };
    for (config, n) in [(config, 30), (sliding, 700)] {
        let model = cases::lively::<B>(&config, 17);
        let ids = Ids::random(&config, 1, 2 * n, 18);
        let device = Default::default();
        let logits = |kind: Kind| {
            let cache = Cache::evicting(&config, 1, 24, 3, &device).expect("rotary");
            let mut cache = cache.stored_as(kind, &device);
            let mut logits = Vec::new();
            for first in (0..2 * n).step_by(5) {
                let ids = ids.positions(first..first + 5).tensor();
                logits.extend(values(model.forward_cached(ids, &mut cache)));
            }
            (logits, cache.n_evicted())
        };
        let (want, n_evicted) = logits(Kind::F32);
        for (kind, most) in [(Kind::F16, 2e-3), (Kind::Q8, 5e-2)] {
            let (got, n) = logits(kind);
            let error = relative_error(&got, &want);
            assert!(n == n_evicted && error > 0.0 && error < most, "{kind:?}: {error:e}, {config:?}");
        }
    }
}
