"""CoreGCN: the propagation, what the network learns, and which rows are picked."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from loop.pool import WHOLE, ItemTable, Pool
from strategies._graph import SimilarityGraph, hidden_features, unit_rows
from strategies._kcenter import k_center_greedy
from strategies._signals import BOTTLENECK_FEATURES
from strategies.core_gcn import CoreGcn
from strategies.core_set import CoreSet

Array = np.ndarray
pytestmark = pytest.mark.usefixtures("one_thread")


def pool_of(labeled: Array, held: Array | None = None) -> Pool:
    """Whole volumes, each its own patient."""
    n = len(labeled)
    volume, position = np.arange(n), np.full(n, WHOLE)
    items = ItemTable([f"image_{i}" for i in range(n)], volume, position)
    return Pool(items, labeled, np.zeros(n, bool) if held is None else held, volume, volume.copy(), position)


def first_rows(n: int, count: int) -> Array:
    return np.arange(n) < count


def dense_adjacency(features: Array) -> Array:
    """A = (S - I) D^-1 + I entry by entry."""
    n = len(features)
    norms = [float(np.sqrt((row**2).sum())) for row in features]
    similarity = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j and norms[i] and norms[j]:
                same = [a * b for a, b in zip(features[i], features[j], strict=True) if a * b > 0]
                similarity[i, j] = sum(same) / norms[i] / norms[j]
    degrees = similarity.sum(axis=0)
    for j in range(n):
        if degrees[j]:
            similarity[:, j] /= degrees[j]
    return similarity + np.eye(n)


@pytest.mark.parametrize("signed", [False, True])
def test_the_propagation_is_the_dense_one(signed: bool) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(17, 5)) if signed else rng.random((17, 5))
    features[3] = 0
    features[4] *= 1e200
    values = rng.normal(size=(17, 3))
    found = SimilarityGraph(unit_rows(features)).propagate(torch.from_numpy(values)).numpy()
    features[4] /= 1e200
    np.testing.assert_allclose(found, dense_adjacency(features) @ values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("features", [np.eye(3), np.zeros((3, 2)), np.ones((1, 4)), -np.eye(2)])
def test_rows_that_are_like_no_other_keep_to_themselves(features: Array) -> None:
    values = torch.arange(2.0 * len(features), dtype=torch.float64).reshape(-1, 2)
    torch.testing.assert_close(SimilarityGraph(unit_rows(features)).propagate(values), values)


def test_the_gradient_of_the_propagation_is_the_transposed_one() -> None:
    features = np.random.default_rng(1).random((6, 3))
    values = torch.zeros(6, 1, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(6.0, dtype=torch.float64)[:, None]
    (SimilarityGraph(unit_rows(features)).propagate(values) * weights).sum().backward()
    np.testing.assert_allclose(values.grad, dense_adjacency(features).T @ weights.numpy())


def test_hidden_features_against_a_plain_training() -> None:
    """Dense, in double precision, gradients by hand, Adam written out; without dropout, whose draws are the network's own."""
    rng = np.random.default_rng(2)
    features, labeled, steps = rng.random((12, 4)), first_rows(12, 4), 30
    found = hidden_features(features, labeled, np.random.default_rng(9), hidden=5, dropout=0, epochs=steps)

    generator = torch.Generator().manual_seed(int(np.random.default_rng(9).integers(2**63)))
    draws = [torch.rand(*shape, generator=generator) for shape in ((4, 5), (5,), (5, 1), (1,))]
    scales = [5**-0.5, 5**-0.5, 1, 1]
    weights = [(2 * draw.double().numpy() - 1) * scale for draw, scale in zip(draws, scales, strict=True)]
    adjacency = dense_adjacency(features)
    seen = adjacency @ (features / np.linalg.norm(features, axis=1, keepdims=True))
    moments = [[np.zeros_like(value), np.zeros_like(value)] for value in weights]
    for step in range(1, steps + 1):
        before = seen @ weights[0] + weights[1]
        hidden = np.maximum(before, 0)
        p = expit((adjacency @ hidden @ weights[2])[:, 0] + weights[3])
        d_logit = np.where(labeled, (p - 1) / 4, 1.2 * p / 8)[:, None]
        d_hidden = adjacency.T @ d_logit @ weights[2].T * (before > 0)
        slopes = [seen.T @ d_hidden, d_hidden.sum(0), (adjacency @ hidden).T @ d_logit, d_logit.sum(0)]
        for value, slope, moment in zip(weights, slopes, moments, strict=True):
            slope = slope + 5e-4 * value
            moment[0] = 0.9 * moment[0] + 0.1 * slope
            moment[1] = 0.999 * moment[1] + 0.001 * slope**2
            mean, square = moment[0] / (1 - 0.9**step), moment[1] / (1 - 0.999**step)
            value -= 1e-3 * mean / (np.sqrt(square) + 1e-8)
    np.testing.assert_allclose(found, np.maximum(seen @ weights[0] + weights[1], 0), rtol=1e-3, atol=1e-5)


def test_hidden_features_are_seeded_and_leave_torch_alone() -> None:
    features, labeled = np.random.default_rng(3).random((9, 4)), first_rows(9, 2)
    before = torch.random.get_rng_state()
    first, again, other = (hidden_features(features, labeled, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == (9, 128)
    assert first.dtype == np.float32


@pytest.mark.parametrize("labeled", [np.zeros(4, bool), np.ones(4, bool), np.ones(3, bool)])
def test_hidden_features_need_both_kinds(labeled: Array) -> None:
    with pytest.raises(ValueError, match="needs labelled and unlabelled rows"):
        hidden_features(np.ones((4, 2)), labeled, np.random.default_rng(0))


@pytest.mark.parametrize("subset", [10_000, 15, 2])
def test_picks_are_k_centres_of_the_hidden_features_in_pool_rows(subset: int) -> None:
    rng = np.random.default_rng(4)
    labeled, held = rng.random(60) < 0.2, rng.random(60) < 0.2
    features = rng.normal(size=(60, 6))
    features[held & ~labeled] = np.nan
    pool, k = pool_of(labeled, held), 5
    found = CoreGcn(subset).ask(pool, {BOTTLENECK_FEATURES.name: features}, k, seed=3, round_no=2)

    draws = np.random.default_rng([3, 2])
    candidates = pool.candidates
    if len(candidates) > max(subset, k):
        candidates = draws.choice(candidates, max(subset, k), replace=False)
    rows = np.array(sorted({*candidates.tolist(), *np.flatnonzero(labeled).tolist()}))
    hidden = hidden_features(features[rows], labeled[rows], draws)
    centres, free = hidden[labeled[rows]].tolist(), {int(row): hidden[at] for at, row in enumerate(rows)}
    for row, score in zip(found.rows.tolist(), found.scores, strict=True):
        gaps = {r: min(np.linalg.norm(h - c) for c in centres) for r, h in free.items() if not labeled[r]}
        assert score == pytest.approx(gaps[row], rel=1e-5)
        assert score == pytest.approx(max(gaps.values()), rel=1e-5)
        centres.append(free.pop(row))
    assert set(found.rows.tolist()) <= set(candidates.tolist())


def test_a_part_of_a_large_pool_is_another_one_each_round_but_holds_every_label() -> None:
    features = np.random.default_rng(5).random((40, 3))
    pool = pool_of(first_rows(40, 3))
    rounds = [CoreGcn(4).ask(pool, {BOTTLENECK_FEATURES.name: features}, 4, seed=0, round_no=n) for n in range(6)]
    assert len({frozenset(found.rows.tolist()) for found in rounds}) == 6
    assert "of 4," in rounds[0].why[0]


def test_without_labels_it_is_k_centre_on_directions_from_a_random_beginning() -> None:
    features = np.random.default_rng(6).normal(size=(20, 3)) * np.arange(1, 21)[:, None]
    pool, nobody = pool_of(np.zeros(20, bool)), np.zeros(20, bool)
    for round_no in range(5):
        found = CoreGcn().ask(pool, {BOTTLENECK_FEATURES.name: features}, 4, seed=0, round_no=round_no)
        rng = np.random.default_rng([0, round_no])
        rows, _ = k_center_greedy(unit_rows(features), 4, labeled=nobody, rng=rng)
        np.testing.assert_array_equal(found.rows, rows)
        assert "nothing is labelled yet" in found.why[0]


@pytest.mark.parametrize("seed", range(3))
def test_it_looks_where_nothing_is_labelled_and_core_set_at_what_is_strange(seed: int) -> None:
    """Half of the pool, none of it labelled, differs in one direction; a few items of the other half are strange in all others.

    Core-set asks for the strange, and would at length 1 too. The network learned which direction tells labelled from
    unlabelled: its hidden features stretch that one.
    """
    rng, row = np.random.default_rng(seed), np.arange(160)
    apart = row % 2 == 1
    labeled, strange = ~apart & (row < 60), ~apart & (row >= 150)
    features = 1 + 0.2 * rng.normal(size=(160, 12))
    features[:, 0] = np.where(apart, 1.5, 0.3)
    features[strange, 1:] += 0.7 * rng.choice([-1, 1], size=(strange.sum(), 11))

    def first(strategy: CoreGcn | CoreSet, values: Array) -> int:
        answer = strategy.ask(pool_of(labeled), {BOTTLENECK_FEATURES.name: values}, 1, seed=seed, round_no=1)
        return int(answer.rows[0])

    assert strange[first(CoreSet(), features)]
    assert strange[first(CoreSet(), unit_rows(features))]
    assert apart[first(CoreGcn(), features)]
