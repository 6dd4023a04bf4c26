"""The maths of selection, each beside a slow and plain computation of the same."""

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from strategies import _kcenter, _similarity
from strategies._distance import lower_to
from strategies._elbow import elbow, query_size
from strategies._kcenter import k_center_greedy
from strategies._kmeanspp import kmeans_pp
from strategies._noise import power_noise
from strategies._similarity import similarity_kernel
from strategies._strata import REST, split_evenly, stratified_top_k
from strategies._submodular import facility_location_mutual_information, maximum_cover
from strategies._topk import top_k
from strategies._typicality import _clusters, typical_rows

Array = np.ndarray
Picks = tuple[Array, Array]
SEEDS = range(25)


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


def grid(seed: int, low: int = 0) -> Array:
    """Few small whole numbers in few columns: duplicates and ties everywhere, and sums without rounding."""
    rng = rng_of(seed)
    shape = (int(rng.integers(1, 25)), int(rng.integers(1, 4)))
    return frozen(rng.integers(low, 4, shape).astype(np.float32))


def smooth(rows: int, columns: int, seed: int = 0) -> Array:
    return frozen(rng_of(seed).standard_normal((rows, columns), np.float32))


def mask(n: int, rows: object = ()) -> Array:
    return frozen(np.isin(np.arange(n), rows))


def same(found: Picks, expected: Picks, rtol: float = 1e-6) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=rtol, atol=1e-9)


# --- k-centre


def slow_k_center(features: Array, k: int, labeled: Array, candidates: Array, first: int | None = None) -> Picks:
    x = features.astype(np.float64)
    centres, left, rows, distances = list(np.flatnonzero(labeled)), sorted(candidates), [], []
    for _ in range(k):
        if centres:
            nearest = [min(np.sqrt(((x[row] - x[centre]) ** 2).sum()) for centre in centres) for row in left]
        else:
            nearest = [
                max(np.sqrt(((x[row] - x[first]) ** 2).sum()) for row in left) if row == first else 0 for row in left
            ]
            nearest = [value if row == first else -1 for row, value in zip(left, nearest, strict=True)]
        place = max(range(len(left)), key=lambda i: (nearest[i], -i))
        rows.append(left[place])
        distances.append(nearest[place])
        centres.append(left.pop(place))
    return np.array(rows), np.array(distances)


@pytest.mark.parametrize("seed", SEEDS)
def test_k_center_is_the_slow_one(seed: int) -> None:
    for features in (grid(seed, -3), smooth(20, 5, seed), smooth(20, 5, seed).astype(np.float64)):
        n, rng = len(features), rng_of(seed)
        labeled = frozen(rng.random(n) < 0.3) if n > 1 else mask(n)
        candidates = np.flatnonzero(~labeled)
        if len(candidates) > 3 and seed % 2:
            candidates = rng.permutation(candidates)[:-1]
        if len(candidates):
            for k in {1, len(candidates)}:
                found = k_center_greedy(features, k, labeled=labeled, rng=rng_of(seed), candidates=frozen(candidates))
                first = None if labeled.any() else int(found[0][0])
                same(found, slow_k_center(features, k, labeled, candidates, first))
                assert (np.diff(found[1]) <= 0).all()


def test_more_labels_than_fit_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kcenter, "_CENTRE_BYTES", 100)
    features, labeled = smooth(40, 6), mask(40, range(0, 26, 2))
    found = k_center_greedy(features, 8, labeled=labeled, rng=rng_of())
    same(found, slow_k_center(features, 8, labeled, np.flatnonzero(~labeled)))


def test_k_center_begins_at_random_without_labels_and_the_same_for_the_same_seed() -> None:
    features = smooth(5, 3)
    firsts = Counter(int(k_center_greedy(features, 1, labeled=mask(5), rng=rng_of(s))[0][0]) for s in range(500))
    assert stats.chisquare([firsts[row] for row in range(5)]).pvalue > 1e-3
    same(*(k_center_greedy(features, 4, labeled=mask(5), rng=rng_of(3)) for _ in range(2)), rtol=0)


@pytest.mark.parametrize("labels", [[], [2]], ids=["none labelled", "one labelled"])
def test_k_center_of_duplicates_takes_each_row_once(labels: list[int]) -> None:
    features = frozen(np.full((7, 4), 3e3, np.float32))
    rows, distances = k_center_greedy(features, 7 - len(labels), labeled=mask(7, labels), rng=rng_of())
    assert sorted([*rows, *labels]) == list(range(7))
    assert (np.diff(rows[len(labels) == 0 :]) > 0).all()
    assert (distances == 0).all()


def test_k_center_of_more_than_the_distinct_points() -> None:
    features = frozen(np.repeat(smooth(40, 6), 5, axis=0))
    rows, distances = k_center_greedy(features, 60, labeled=mask(200), rng=rng_of())
    assert len(set(rows.tolist())) == 60
    assert len(np.unique(features[rows[:40]], axis=0)) == 40
    assert (distances[:40] > 0).all()
    assert (distances[40:] == 0).all()


@pytest.mark.parametrize("gap", [0.06, 0.006, 0.0006])
def test_near_duplicates_of_large_norm_are_near(gap: float) -> None:
    rng = rng_of(1)
    labeled_rows = (rng.standard_normal((100, 64)) * 50).astype(np.float32)
    near = labeled_rows.astype(np.float64) + gap * rng.standard_normal((100, 64)) / 8
    features = frozen(
        np.concatenate(
            [labeled_rows, near.astype(np.float32), labeled_rows[:5] + np.arange(1, 6, dtype=np.float32)[:, None]]
        )
    )
    labeled = mask(205, range(100))
    found = k_center_greedy(features, 30, labeled=labeled, rng=rng_of())
    assert set(found[0][:5]) == set(range(200, 205))
    same(found, slow_k_center(features, 30, labeled, np.arange(100, 205)), rtol=1e-5)
    seeded, squares = kmeans_pp(features, 205, rng_of())
    assert len(set(seeded.tolist())) == 205
    assert (squares > 0).all()


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 2.0**60, 2.0**120])
def test_magnitude_does_not_matter(scale: float) -> None:
    features = smooth(30, 4)
    scaled = frozen(features * np.float32(scale))
    rows, distances = k_center_greedy(features, 10, labeled=mask(30, [3]), rng=rng_of())
    same(k_center_greedy(scaled, 10, labeled=mask(30, [3]), rng=rng_of()), (rows, distances * scale), rtol=1e-4)
    np.testing.assert_array_equal(kmeans_pp(scaled, 10, rng_of())[0], kmeans_pp(features, 10, rng_of())[0])
    np.testing.assert_array_equal(maximum_cover(scaled, 10)[0], maximum_cover(features, 10)[0])


def test_any_memory_order_and_float_type_is_read() -> None:
    features = smooth(30, 4).astype(np.float16)
    expected = k_center_greedy(features.astype(np.float32), 5, labeled=mask(30, [0]), rng=rng_of())
    for each in (features, np.asfortranarray(features.astype(np.float32)), features.astype(np.float64)):
        same(k_center_greedy(each, 5, labeled=mask(30, [0]), rng=rng_of()), expected)


def test_distances_to_many_centres_at_once() -> None:
    features, centres, nearest = smooth(9, 1664), smooth(4, 1664, 1).copy(), np.full(5, np.inf, np.float32)
    rows = np.array([8, 1, 2, 3, 0])
    lower_to(features, rows, centres, nearest)
    slow = ((features[rows, None].astype(float) - centres.astype(float)) ** 2).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(nearest, slow, rtol=1e-5)


# --- k-means++


def slow_kmeans_pp(
    features: Array, k: int, rng: np.random.Generator, first: str, trials: int, candidates: list[int]
) -> Picks:
    x = features.astype(np.float64)

    def square(a: int, b: int) -> float:
        return float(((x[a] - x[b]) ** 2).sum())

    norms = [float((x[row] ** 2).sum()) for row in candidates]
    start = norms.index(max(norms)) if first == "max_norm" else int(rng.integers(len(candidates)))
    rows, squares = [candidates[start]], [norms[start]]
    while len(rows) < k:
        nearest = [min(square(row, centre) for centre in rows) for row in candidates]
        total = sum(nearest)
        if total:
            drawn = []
            for point in rng.random(trials) * total:
                place = next(i for i, partial in enumerate(itertools.accumulate(nearest)) if partial > point)
                drawn.append(candidates[place])
        else:
            left = [row for row in candidates if row not in rows]
            drawn = [left[i] for i in rng.integers(len(left), size=trials)]
        best = min(
            drawn,
            key=lambda trial: sum(min(near, square(row, trial)) for row, near in zip(candidates, nearest, strict=True)),
        )
        rows.append(best)
        squares.append(nearest[candidates.index(best)])
    return np.array(rows), np.array(squares)


@pytest.mark.parametrize("trials", [1, 2, 5])
@pytest.mark.parametrize("first", ["max_norm", "random"])
def test_kmeans_pp_is_the_slow_one(first: str, trials: int) -> None:
    for seed in SEEDS:
        features = grid(seed, -3)
        n = len(features)
        for candidates in (None, frozen(rng_of(seed).permutation(n)[: n // 2 + 1])):
            allowed = list(range(n)) if candidates is None else sorted(candidates.tolist())
            for k in {1, len(allowed)}:
                found = kmeans_pp(features, k, rng_of(seed), first=first, local_trials=trials, candidates=candidates)
                same(found, slow_kmeans_pp(features, k, rng_of(seed), first, trials, allowed))
                assert len(set(found[0].tolist())) == k


def test_the_second_pick_is_drawn_in_proportion_to_squared_distance() -> None:
    features = frozen(np.array([[0, 0], [5, 0], [1, 0], [5, 0], [4, 2], [0, 3], [4, 0]], np.float32))
    squares = ((features - features[1]) ** 2).sum(axis=1)
    drawn = Counter(int(kmeans_pp(features, 2, rng_of(seed))[0][1]) for seed in range(4000))
    possible = np.flatnonzero(squares)
    assert set(drawn) <= set(possible.tolist())
    expected = 4000 * squares[possible] / squares.sum()
    assert stats.chisquare([drawn[row] for row in possible], expected * 4000 / expected.sum()).pvalue > 1e-3


def test_seeding_of_duplicates_is_uniform() -> None:
    features = frozen(np.ones((4, 3), np.float32))
    drawn = Counter(tuple(kmeans_pp(features, 3, rng_of(s), first="random")[0].tolist()) for s in range(2400))
    assert all(len(set(rows)) == 3 for rows in drawn)
    assert stats.chisquare([drawn[rows] for rows in itertools.permutations(range(4), 3)]).pvalue > 1e-3


def test_local_trials_lower_the_potential() -> None:
    features = smooth(400, 8)

    def potential(trials: int, seed: int) -> float:
        rows, _ = kmeans_pp(features, 20, rng_of(seed), local_trials=trials)
        return float(((features[:, None] - features[rows]) ** 2).sum(axis=2).min(axis=1).sum())

    assert np.mean([potential(6, s) for s in range(10)]) < np.mean([potential(1, s) for s in range(10)])


# --- facility location


def slow_value(kernel: Array, rows: list[int], eta: float) -> float:
    """I(B; Q) by its formula; of no rows, 0."""
    return float(kernel[rows].max(axis=0).sum() + eta * kernel[rows].max(axis=1).sum()) if rows else 0.0


def slow_greedy(kernel: Array, k: int, eta: float) -> Picks:
    kernel = kernel.astype(np.float64)
    rows: list[int] = []
    gains = []
    for _ in range(k):
        values = {row: slow_value(kernel, [*rows, row], eta) for row in range(len(kernel)) if row not in rows}
        best = min(values, key=lambda row: (-values[row], row))
        gains.append(values[best] - slow_value(kernel, rows, eta))
        rows.append(best)
    return np.array(rows), np.array(gains)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_lazy_greedy_is_greedy(seed: int, eta: float) -> None:
    for kernel in (grid(seed), grid(seed, -3), smooth(15, 9, seed), smooth(12, 40, seed).astype(np.float64)):
        k = len(kernel)
        found = facility_location_mutual_information(kernel, k, eta=eta)
        same(found, slow_greedy(np.maximum(kernel, 0), k, eta))
        signed = facility_location_mutual_information(kernel, k, eta=eta, signed=True)
        same(signed, slow_greedy(kernel, k, eta))


def test_a_kernel_of_negatives() -> None:
    kernel = frozen(-np.array([[9.0, 9.0], [1.0, 5.0], [2.0, 2.0], [5.0, 1.0]], np.float32))
    same(facility_location_mutual_information(kernel, 2), (np.array([0, 1]), np.zeros(2)))
    same(facility_location_mutual_information(kernel, 2, eta=0, signed=True), (np.array([2, 1]), np.array([-4.0, 1.0])))


@pytest.mark.parametrize("eta", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_exact_backend_is_submodlib_on_what_it_can_do(seed: int, eta: float) -> None:
    from submodlib import FacilityLocationVariantMutualInformationFunction as Function

    kernel = frozen(rng_of(seed).random((120, 90), np.float32))
    rows, gains = facility_location_mutual_information(kernel, 25, eta=eta)
    function = Function(120, 90, query_sijs=kernel, queryDiversityEta=eta)
    for optimizer in ("NaiveGreedy", "LazyGreedy"):
        theirs = function.maximize(
            budget=25, optimizer=optimizer, stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
        )
        assert [row for row, _ in theirs] == rows.tolist()
        np.testing.assert_allclose(sum(gain for _, gain in theirs), gains.sum(), rtol=1e-6)
    np.testing.assert_allclose(function.evaluate(set(rows.tolist())), slow_value(kernel, rows.tolist(), eta), rtol=1e-6)
    same((rows, gains), facility_location_mutual_information(kernel, 25, eta=eta, backend="submodlib"), rtol=1e-4)


def test_submodlib_clips_negatives_as_the_exact_backend_does() -> None:
    kernel = smooth(60, 12)
    same(
        facility_location_mutual_information(kernel, 10, backend="submodlib"),
        facility_location_mutual_information(kernel, 10),
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("kernel", "k", "options", "message"),
    [
        (np.ones((3, 2)), 3, {}, "between 1 and n - 1"),
        (np.ones((3, 2)), 0, {}, "between 1 and n - 1"),
        (np.array([[1e39], [1.0]]), 1, {}, "magnitude of 1e\\+39"),
        (np.ones((3, 2)), 1, {"signed": True}, "signed=True"),
        (np.ones((1000, 100), np.float32), 1, {"memory_limit": 10**6}, "need 0.006 GB .* limit is 0.001 GB"),
    ],
    ids=["k is n", "k is 0", "beyond float32", "signed", "memory"],
)
def test_submodlib_is_kept_from_what_it_would_not_survive(
    kernel: Array, k: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        facility_location_mutual_information(kernel, k, backend="submodlib", **options)


@pytest.mark.parametrize("options", [{"eta": -1.0}, {"eta": np.nan}, {"backend": "other"}])
def test_mutual_information_refuses(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Facility-location mutual information needs"):
        facility_location_mutual_information(np.ones((3, 2), np.float32), 1, **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_maximum_cover_is_the_slow_one(seed: int) -> None:
    features, rng = smooth(18, 4, seed).copy(), rng_of(seed)
    features[rng.integers(18)] = 0
    candidates = frozen(rng.permutation(18)[:9])
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(features, length, out=np.zeros((18, 4)), where=length > 0)
    rows = np.sort(candidates)
    expected, gains = slow_greedy(unit[rows] @ unit.T, 9, eta=0)
    found = maximum_cover(frozen(features), 9, candidates=candidates)
    np.testing.assert_allclose(found[1], gains, atol=1e-4)
    # The zero row adds what others may add too; where gains differ, so do no picks.
    clear = int(np.argmax(np.append(gains, 0) < 1e-5))
    np.testing.assert_array_equal(found[0][:clear], rows[expected][:clear])


def test_maximum_cover_of_one_row() -> None:
    same(maximum_cover(frozen(np.array([[3.0, 4.0]], np.float32)), 1), (np.array([0]), np.array([1.0])))


# --- similarity


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("weighted", [False, True])
def test_similarity_is_the_slow_one(metric: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_similarity, "_BLOCK_BYTES", 200)
    left, right = smooth(23, 6).copy(), smooth(5, 6, 1).copy()
    left[4] = right[2] = 0
    left[7] *= np.float32(1e30 if metric == "cosine" else 1)
    left[8] *= np.float32(1e-30 if metric == "cosine" else 1)
    weights = frozen(rng_of(2).random(6) * 9) if weighted else None
    found = similarity_kernel(frozen(left), frozen(right), metric=metric, weights=weights)
    assert found.dtype == np.float32
    weight = np.ones(6) if weights is None else weights
    for i, j in np.ndindex(23, 5):
        g, q = left[i].astype(np.float64), right[j].astype(np.float64)
        lengths = np.sqrt((weight * g * g).sum() * (weight * q * q).sum()) if metric == "cosine" else 1.0
        expected = (weight * g * q).sum() / lengths if lengths else 0.0
        assert found[i, j] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "euclidean"}, "cosine or dot"),
        ({"queries": np.ones((2, 4), np.float32)}, "queries and weights of 3 columns"),
        ({"weights": np.ones(2)}, "queries and weights of 3 columns"),
        ({"weights": np.array([1.0, -1.0, 1.0])}, "at least 0"),
        ({"weights": np.array([1.0, np.inf, 1.0])}, "at least 0"),
        ({"queries": np.full((2, 3), np.nan, np.float32)}, "got nan in row 0"),
        ({"queries": np.full((2, 3), 1e38, np.float32), "metric": "dot"}, "got more in row 1"),
    ],
)
def test_similarity_refuses(arguments: dict[str, object], message: str) -> None:
    candidates = np.array([[0, 0, 0], [9, 9, 9]], np.float32)
    with pytest.raises(ValueError, match=message):
        similarity_kernel(candidates, **{"queries": candidates, **arguments})


# --- typicality


def slow_typical_rows(features: Array, k: int, labeled: Array, clusters: Array) -> Picks:
    x = features.astype(np.float64)
    left = {cluster: [r for r in range(len(x)) if clusters[r] == cluster and not labeled[r]] for cluster in clusters}
    small = {cluster: (clusters == cluster).sum() <= 5 for cluster in left}
    order = sorted(left, key=lambda c: (labeled[clusters == c].sum(), -(clusters == c).sum(), np.argmax(clusters == c)))
    rows, values = [], []
    while len(rows) < k:
        usable = [c for c in order if left[c] and not small[c]] or [c for c in order if left[c]]
        for cluster in usable[: k - len(rows)]:
            members = left[cluster]
            if len(members) == 1:
                typicality = [0.0]
            else:
                near = min(20, len(members) // 2)
                each = [sorted(np.sqrt(((x[r] - x[s]) ** 2).sum()) for s in members if s != r)[:near] for r in members]
                typicality = [1 / (1e-5 + sum(distances) / near) for distances in each]
            place = max(range(len(members)), key=lambda i: (typicality[i], -i))
            rows.append(members.pop(place))
            values.append(typicality[place])
    return np.array(rows), np.array(values)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_typical_rows_are_the_slow_ones(seed: int, normalize: bool) -> None:
    rng = rng_of(seed)
    features = smooth(80, 5, seed)
    labeled = frozen(rng.random(80) < 0.05 * (seed % 3))
    k = int(rng.choice([1, 6, 20, 80 - labeled.sum()]))
    found = typical_rows(features, k, labeled=labeled, rng=rng_of(seed), normalize=normalize)
    used = features / np.linalg.norm(features, axis=1, keepdims=True) if normalize else features
    clusters = _clusters(used, int(labeled.sum()) + k, rng_of(seed))
    same(found, slow_typical_rows(used, k, labeled, clusters), rtol=1e-4)


def test_uncovered_clusters_come_first_and_the_largest_of_them() -> None:
    sizes = [30, 20, 12, 40]
    blobs = [smooth(size, 3, i) * 0.1 + np.float32(100 * i) for i, size in enumerate(sizes)]
    blob = np.repeat(np.arange(4), sizes)
    rows, typicality, sizes, labels = typical_rows(
        frozen(np.concatenate(blobs)), 3, labeled=mask(102, [5]), rng=rng_of(), candidates=frozen(np.arange(6, 102))
    )
    assert blob[rows].tolist() == [3, 1, 2]
    assert sizes.tolist() == [40, 20, 12]
    assert not labels.any()
    assert (typicality > 0).all()


def test_small_clusters_wait() -> None:
    far = np.array([[100.0], [101.0], [102.0]], np.float32)
    features = frozen(np.concatenate([smooth(10, 1), far]))
    rows, *_ = typical_rows(features, 13, labeled=mask(13), rng=rng_of())
    assert sorted(rows.tolist()) == list(range(13))
    rows, *_ = typical_rows(features, 2, labeled=mask(13), rng=rng_of())
    assert (rows < 10).all()


def test_typical_rows_of_duplicates_and_of_one() -> None:
    rows, typicality, *_ = typical_rows(frozen(np.zeros((70, 2), np.float32)), 60, labeled=mask(70, [1]), rng=rng_of())
    assert len(set(rows.tolist())) == 60
    assert np.isfinite(typicality).all()
    same(typical_rows(frozen(np.ones((1, 2), np.float32)), 1, labeled=mask(1), rng=rng_of()), (np.array([0]), [0.0]))


# --- what all that read features refuse, and keep


PICKERS: dict[str, Callable[[Array, int], Picks]] = {
    "k-centre": lambda x, k: k_center_greedy(x, k, labeled=mask(len(x)), rng=rng_of()),
    "k-means++": lambda x, k: kmeans_pp(x, k, rng_of()),
    "mutual information": lambda x, k: facility_location_mutual_information(x, k),
    "maximum cover": maximum_cover,
    "TypiClust": lambda x, k: typical_rows(x, k, labeled=mask(len(x)), rng=rng_of())[:2],
}


@pytest.mark.parametrize("pick", PICKERS.values(), ids=PICKERS)
def test_pickers_refuse(pick: Callable[[Array, int], Picks]) -> None:
    good = np.ones((4, 3), np.float32)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k between 1 and the number of candidates \\(4\\), got {k}"):
            pick(good, k)
    for bad in (np.nan, np.inf, -np.inf):
        features = good.copy()
        features[2, 1] = bad
        with pytest.raises(ValueError, match=f"got {bad} in row 2, column 1"):
            pick(features, 1)
    for features in (good[0], good.astype(int), good[:0], good[:, :0]):
        with pytest.raises(ValueError, match=r"a matrix of a floating type|between 1 and the number of candidates"):
            pick(features, 1)


@pytest.mark.parametrize("pick", PICKERS.values(), ids=PICKERS)
def test_pickers_give_distinct_rows_and_the_same_for_the_same_seed(pick: Callable[[Array, int], Picks]) -> None:
    for features in (grid(1), grid(2, -3), smooth(1, 1), smooth(30, 7)):
        for k in range(1, len(features) + 1):
            rows, values = pick(features, k)
            assert rows.dtype == np.int64
            assert sorted(set(rows.tolist()) | set(range(len(features)))) == list(range(len(features)))
            assert len(set(rows.tolist())) == len(rows) == len(values) == k
            assert np.isfinite(values).all()
        same((rows, values), pick(features, len(features)), rtol=0)


@pytest.mark.parametrize("candidates", [[0, 0], [-1, 2], [2, 6], [1, 2]], ids=["twice", "below", "above", "labelled"])
def test_candidates_must_be_free_rows(candidates: list[int]) -> None:
    features = smooth(6, 2)
    for pick in (k_center_greedy, typical_rows):
        with pytest.raises(ValueError, match="distinct unlabelled rows below 6"):
            pick(features, 1, labeled=mask(6, [1]), rng=rng_of(), candidates=np.array(candidates))
    for labeled in (mask(5), np.zeros(6)):
        for pick in (k_center_greedy, typical_rows):
            with pytest.raises(ValueError, match="needs a mask \\(6,\\)"):
                pick(features, 1, labeled=labeled, rng=rng_of())


def test_rows_that_are_not_used_may_hold_anything() -> None:
    features = smooth(9, 3).copy()
    features[2], features[7] = np.nan, np.inf
    candidates, labeled = np.array([8, 1, 3, 4, 6]), mask(9, [0])
    clean = frozen(np.where(np.isfinite(features), features, 0))
    same(
        k_center_greedy(features, 5, labeled=labeled, rng=rng_of(), candidates=candidates),
        k_center_greedy(clean, 5, labeled=labeled, rng=rng_of(), candidates=candidates),
    )
    same(kmeans_pp(features, 5, rng_of(), candidates=candidates), kmeans_pp(clean, 5, rng_of(), candidates=candidates))
    with pytest.raises(ValueError, match="got inf in row 7, column 0"):
        k_center_greedy(features, 1, labeled=mask(9, [7]), rng=rng_of(), candidates=candidates)


def test_seeding_refuses_what_it_does_not_know() -> None:
    for options in ({"first": "last"}, {"local_trials": 0}):
        with pytest.raises(ValueError, match="at least one local trial"):
            kmeans_pp(smooth(3, 2), 1, rng_of(), **options)
    with pytest.raises(ValueError, match="squares are finite, got a magnitude of 1e\\+200"):
        kmeans_pp(np.full((3, 2), 1e200), 1, rng_of())


@pytest.mark.parametrize("seed", range(10))
def test_permuted_rows_give_the_permuted_picks(seed: int) -> None:
    features, order = smooth(40, 6, seed), rng_of(seed).permutation(40)
    labeled = mask(40, [3, 9])
    rules: list[Callable[[Array, Array], Picks]] = [
        lambda x, y: k_center_greedy(x, 12, labeled=y, rng=rng_of()),
        lambda x, _: facility_location_mutual_information(x, 12),
        lambda x, _: facility_location_mutual_information(x, 12, signed=True),
        lambda x, _: maximum_cover(x, 5),
    ]
    for rule in rules:
        rows, values = rule(features, labeled)
        moved, moved_values = rule(frozen(features[order]), frozen(labeled[order]))
        np.testing.assert_array_equal(order[moved], rows)
        np.testing.assert_allclose(moved_values, values, rtol=1e-4, atol=1e-4)


# --- elbow


def test_the_elbow_is_where_a_cliff_ends() -> None:
    values = frozen(np.concatenate([np.linspace(100, 1, 50), np.linspace(1, 0, 950)]))
    found = elbow(values)
    assert found is not None
    assert abs(found - 50) <= 2
    assert query_size(rng_of().permutation(values), 3) == found
    assert query_size(values, 30) == 150
    assert query_size(values, 400) == 1000


@pytest.mark.parametrize("values", [[1.0], [2.0, 1.0], [3.0] * 50, np.linspace(1, 0, 50)], ids=str)
def test_no_elbow_falls_back_to_five_budgets(values: object) -> None:
    array = np.array(values)
    assert elbow(array) is None
    assert query_size(array, 2) == min(10, len(array))


@pytest.mark.parametrize("values", [[1.0, 2.0], [np.nan, 1.0], [[1.0]]])
def test_elbow_refuses(values: object) -> None:
    with pytest.raises(ValueError, match="finite falling values"):
        elbow(np.array(values))


@pytest.mark.parametrize(("n", "budget"), [(0, 1), (3, 0)])
def test_query_size_refuses(n: int, budget: int) -> None:
    with pytest.raises(ValueError, match="items and a budget"):
        query_size(np.ones(n), budget)


# --- power noise


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_highest_is_drawn_in_proportion_to_the_power(beta: float) -> None:
    scores = frozen(np.array([1.0, 0.0, 2.0, 4.0, 0.5]))
    drawn = Counter(int(np.argmax(power_noise(scores, beta, rng_of(seed)))) for seed in range(4000))
    wanted = scores[scores > 0] ** beta
    assert drawn[1] == 0
    assert stats.chisquare([drawn[i] for i in (0, 2, 3, 4)], 4000 * wanted / wanted.sum()).pvalue > 1e-3


@pytest.mark.parametrize("beta", [1e-300, 1e-3, 1.0, 1e300])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_noise_is_finite_and_nothing_comes_after_something(beta: float, kind: type) -> None:
    scores = frozen(np.array([0, 1e-40, -1e-9, 1, 0, 1e30, -5, 0], kind))
    for seed in range(200):
        noised = power_noise(scores, beta, rng_of(seed))
        assert np.isfinite(noised).all()
        assert len(np.unique(noised[scores <= 0])) == (scores <= 0).sum()
        assert noised[scores > 0].min() > noised[scores <= 0].max()


def test_items_without_a_score_are_in_random_order() -> None:
    for scores in (np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, 0.0, 7.0])):
        drawn = Counter(tuple(np.argsort(power_noise(scores, 1.0, rng_of(s))[:3]).tolist()) for s in range(1200))
        assert stats.chisquare([drawn[order] for order in itertools.permutations(range(3))]).pvalue > 1e-3


def test_much_beta_is_no_noise() -> None:
    scores = frozen(rng_of().random(50) + 0.01)
    np.testing.assert_allclose(power_noise(scores, 1e9, rng_of()), np.log(scores), atol=1e-6)
    assert len(power_noise(np.empty(0), 1.0, rng_of())) == 0


@pytest.mark.parametrize(
    ("score", "beta", "message"),
    [(1, 0, "beta"), (1, -1, "beta"), (1, np.nan, "beta"), (1, np.inf, "beta"), (np.nan, 1, "nan at index 0")],
)
def test_power_noise_refuses(score: float, beta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        power_noise(np.array([score]), beta, rng_of())


# --- strata and top k


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_an_even_split_is_even(budget: int, strata: int) -> None:
    parts = split_evenly(budget, strata)
    assert len(parts) == strata
    assert sum(parts) == budget
    assert max(parts) - min(parts) <= 1
    assert parts == sorted(parts, reverse=True)


@pytest.mark.parametrize(("budget", "strata"), [(-1, 2), (3, 0)])
def test_split_refuses(budget: int, strata: int) -> None:
    with pytest.raises(ValueError, match="among 1 or more strata"):
        split_evenly(budget, strata)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 5), st.floats(0, 1), st.data())
def test_strata_take_their_best_in_turns(seed: int, n: int, count: int, share: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    scores = frozen(rng_of(seed).integers(0, 5, (count + 1, n)).astype(float))
    items, strata = stratified_top_k(list(scores[1:]), scores[0], k, rng_of(seed), share=share)
    assert len(items) == len(strata) == len(set(items.tolist())) == k
    # Each took the highest that was left.
    for place, (item, stratum) in enumerate(zip(items, strata, strict=True)):
        ranking = scores[0] if stratum == REST else scores[1 + stratum]
        assert ranking[item] == np.delete(ranking, items[:place]).max()
    quota = round(share * k) if count else 0
    assert sorted(np.bincount(strata[strata != REST], minlength=count), reverse=True) == (
        split_evenly(quota, count) if count else []
    )
    assert (strata[quota:] == REST).all()
    again = stratified_top_k(list(scores[1:]), scores[0], k, rng_of(seed), share=share)
    np.testing.assert_array_equal(again, (items, strata))


def test_chance_decides_which_stratum_gets_one_more() -> None:
    scores = frozen(rng_of().random((3, 9)))
    more = Counter(
        int(np.bincount(stratified_top_k(list(scores), scores[0], 4, rng_of(seed), share=1)[1]).argmax())
        for seed in range(900)
    )
    assert stats.chisquare([more[stratum] for stratum in range(3)]).pvalue > 1e-3


def test_strata_refuse() -> None:
    scores = np.ones(3)
    for strata, share in (([np.ones(2)], 0.5), ([scores], 1.5), ([scores], np.nan)):
        with pytest.raises(ValueError, match="a share from 0 to 1"):
            stratified_top_k(strata, scores, 1, rng_of(), share=share)
    with pytest.raises(ValueError, match="between 1 and the number of scores"):
        stratified_top_k([scores], scores, 4, rng_of())


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 6), st.data())
def test_top_k_has_the_values_of_a_sort(seed: int, n: int, levels: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    scores = frozen(rng_of(seed).integers(0, levels, n).astype(np.float32))
    chosen = top_k(scores, k, rng_of(seed))
    assert len(set(chosen.tolist())) == k
    np.testing.assert_array_equal(scores[chosen], np.sort(scores)[::-1][:k])


def test_every_set_of_ties_at_the_last_place_is_as_likely() -> None:
    scores = frozen(np.array([1.0, 5.0, 1.0, 1.0, 0.0, 1.0]))
    drawn = Counter(tuple(top_k(scores, 3, rng_of(seed)).tolist()) for seed in range(3600))
    pairs = [(1, *pair) for pair in itertools.permutations([0, 2, 3, 5], 2)]
    assert set(drawn) == set(pairs)
    assert stats.chisquare([drawn[pair] for pair in pairs]).pvalue > 1e-3
