"""BSQ: the strategy beside plain loops over its formula, and the infoVAE that it looks through."""

import itertools
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
import models.learners
import trainers.learners  # noqa: F401 - makes the training known
from datastore.volume_io import is_here
from infers.representation import EmbeddingViews
from infers.source import Source
from loop.pool import WHOLE, ItemTable, Pool
from loop.signals import sweep
from loop.sweeping import SweepSource
from loop.views import Embedding
from models import representation
from models.info_vae import InfoVAE, info_vae
from models.representation import Representation, slices_of
from models.weights import WeightsFolder
from strategies import Selection
from strategies._likelihood_ratio import DiagonalGaussian, likelihood_ratio_rows, log_tail
from strategies._signals import INFO_VAE_LATENT
from strategies.bsq import Bsq
from trainers import representation as training
from trainers.info_vae import BATCH, default_epochs, mmd
from trainers.representation import RepresentationSettings, Slices

Array = np.ndarray
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")

# --- the strategy


def log_erfc(u: float) -> float:
    """By the C library where it can, else by the first terms of the asymptotic series (DLMF 7.12.1)."""
    if u < 20:
        return math.log(math.erfc(u))
    return -u * u - math.log(u * math.sqrt(math.pi)) + math.log1p(-1 / (2 * u**2) + 3 / (4 * u**4) - 15 / (8 * u**6))


def slow_tail(z: Array, mean: list[float], scale: list[float]) -> float:
    return sum(log_erfc(abs(z[k] - mean[k]) / (math.sqrt(2) * scale[k])) for k in range(len(z)))


def slow_fit(latents: Array, floor: float) -> tuple[list[float], list[float]]:
    columns = [[float(row[k]) for row in latents] for k in range(latents.shape[1])]
    means = [math.fsum(column) / len(column) for column in columns]
    variances = [math.fsum((x - m) ** 2 for x in c) / len(c) for c, m in zip(columns, means, strict=True)]
    return means, [max(math.sqrt(variance), floor) for variance in variances]


def slow_bsq(
    pool: Pool, uncertainty: Array, latents: Array, k: int, *, n_unc: int = 0, refit: bool = True, floor: float = 1e-3
) -> tuple[list[int], list[float]]:
    """(rows, ratios) as section 2.3 and 2.4 of the paper tell it, every fit anew."""
    candidates = [row for row in range(len(pool)) if not pool.labeled[row] and not pool.held[row]]
    latents = latents.astype(np.float64)
    k = min(k, len(candidates))
    ranked = sorted(candidates, key=lambda row: -uncertainty[row])
    offered = sorted(ranked[: max(n_unc or 2 * k, k)])
    annotated = [row for row in range(len(pool)) if pool.labeled[row]]
    mean, scale = slow_fit(latents[sorted([*candidates, *annotated])], floor)

    def ratio(row: int, known: list[int]) -> float:
        value = slow_tail(latents[row], mean, scale)
        if known:
            its_mean, its_scale = slow_fit(latents[known], floor)
            value -= slow_tail(latents[row], its_mean, its_scale if len(known) > 1 else scale)
        return value

    chosen: list[int] = []
    scores: list[float] = []
    for _ in range(k):
        known = [*annotated, *chosen] if refit else annotated
        ratios = {row: ratio(row, known) for row in offered if row not in chosen}
        best = max(ratios, key=lambda row: (ratios[row], -row))
        chosen, scores = [*chosen, best], [*scores, ratios[best]]
    return chosen, scores


def make_pool(rows: int, *, labeled: range | list[int] = range(0), held: range | list[int] = range(0)) -> Pool:
    volume, position = np.arange(rows) // 10, np.arange(rows) % 10
    marks = [np.isin(np.arange(rows), list(which)) for which in (labeled, held)]
    items = ItemTable([f"image_{i}" for i in range(rows // 10 + 1)], volume, position)
    return Pool(items, *marks, volume, volume, position)


def ask(strategy: Bsq, pool: Pool, uncertainty: Array, latents: Array, k: int, *, seed: int = 0) -> Selection:
    hidden = (pool.held & ~pool.labeled)[:, None]
    signals = {
        strategy.uncertainty.name: np.where(hidden[:, 0], np.nan, uncertainty).astype(np.float32),
        INFO_VAE_LATENT.name: np.where(hidden, np.nan, latents).astype(np.float32),
    }
    return strategy.ask(pool, signals, k, seed=seed, round_no=1)


def draw(rows: int, dims: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Uncertainties, all different, and latents of unlike dimensions; float32 as a sweep gives them."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((rows, dims)) * np.logspace(-1, 1, dims) + np.linspace(-3, 3, dims)
    return rng.permutation(rows).astype(np.float32), latents.astype(np.float32)


POOLS = {
    "ten labelled": make_pool(40, labeled=range(0, 40, 4), held=[1, 2, 39]),
    "two labelled": make_pool(30, labeled=[3, 20]),
    "one labelled": make_pool(30, labeled=[7], held=[8]),
    "none labelled": make_pool(30, held=[0, 29]),
    "three candidates": make_pool(10, labeled=range(7)),
}


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_bsq_against_plain_loops(pool: Pool, refit: bool) -> None:
    for seed, (n_unc, k) in enumerate(itertools.product([0, 9, 1000], [1, 3, 8, 60])):
        uncertainty, latents = draw(len(pool), seed=seed)
        selection = ask(Bsq(n_unc=n_unc, refit=refit), pool, uncertainty, latents, k)
        rows, scores = slow_bsq(pool, uncertainty, latents, k, n_unc=n_unc, refit=refit)
        assert selection.rows.tolist() == rows
        np.testing.assert_allclose(selection.scores, scores, rtol=1e-6, atol=1e-8)


def test_refitting_spreads_what_is_picked() -> None:
    """Two equal groups that no label covers: without refitting both picks come from the one that is a little ahead."""
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0.0], [6.0, 0.1], [0.0, 6.0]], 20, axis=0)
    latents = centres + 0.1 * rng.standard_normal(centres.shape)
    pool, uncertainty = make_pool(60, labeled=range(10)), np.arange(60.0)
    groups = [
        set((ask(Bsq(n_unc=60, refit=refit), pool, uncertainty, latents, 2).rows // 20).tolist())
        for refit in (True, False)
    ]
    assert groups[0] == {1, 2}
    assert len(groups[1]) == 1


def test_only_the_most_uncertain_are_looked_at() -> None:
    pool, (uncertainty, latents) = POOLS["ten labelled"], draw(40)
    for n_unc, looked_at in ((0, 10), (7, 7), (1, 5)):
        uncertain = sorted(pool.candidates, key=lambda row: -uncertainty[row])[:looked_at]
        assert set(ask(Bsq(n_unc=n_unc), pool, uncertainty, latents, 5).rows) <= set(uncertain)
    assert "top 4 % of 27" in ask(Bsq(n_unc=1), pool, uncertainty, latents, 1).why[0]


@pytest.mark.parametrize("floor", [1e-6, 1e-3, 0.5])
def test_dimensions_without_spread_have_the_floor(floor: float) -> None:
    """All annotated alike in one dimension, the whole pool in another."""
    pool, (uncertainty, latents) = POOLS["ten labelled"], draw(40)
    latents[pool.labeled, 0] = latents[0, 0]
    latents[:, 1] = np.float32(0.1)
    for refit in (True, False):
        strategy = Bsq(floor=floor, refit=refit)
        rows, scores = slow_bsq(pool, uncertainty, latents, 6, refit=refit, floor=floor)
        selection = ask(strategy, pool, uncertainty, latents, 6)
        assert selection.rows.tolist() == rows
        np.testing.assert_allclose(selection.scores, scores, rtol=1e-6)


def test_with_nothing_annotated_the_most_typical_is_first() -> None:
    pool, (uncertainty, latents) = make_pool(50), draw(50)
    selection = ask(Bsq(n_unc=50), pool, uncertainty, latents, 3)
    distance = np.abs((latents - latents.mean(0)) / latents.std(0))
    tails = np.array([sum(log_erfc(x / math.sqrt(2)) for x in row) for row in distance])
    assert selection.rows[0] == tails.argmax()
    # The second is not simply what is furthest from the one: a single item's spread is the pool's.
    assert selection.rows[1] != np.linalg.norm((latents - latents[selection.rows[0]]) / latents.std(0), axis=1).argmax()


def test_of_equals_the_first_row_is_taken() -> None:
    pool, (uncertainty, latents) = make_pool(40, labeled=range(8)), draw(40)
    latents[8:] = np.repeat(latents[8:24], 2, axis=0)
    for refit in (True, False):
        rows = ask(Bsq(n_unc=40, refit=refit), pool, uncertainty, latents, 20).rows.tolist()
        twins = [row for row in rows if row % 2]
        assert twins
        assert all(rows.index(row - 1) < rows.index(row) for row in twins if row - 1 in rows)
        assert all(row - 1 in rows for row in twins)
    alike = np.ones((40, 4), np.float32)
    assert ask(Bsq(n_unc=40), pool, uncertainty, alike, 5).rows.tolist() == [8, 9, 10, 11, 12]


def test_equal_uncertainty_is_broken_by_the_seed() -> None:
    pool, (_, latents) = make_pool(40, labeled=range(8)), draw(40)
    answers = {tuple(ask(Bsq(), pool, np.ones(40), latents, 3, seed=seed).rows.tolist()) for seed in range(6)}
    assert len(answers) > 1


def test_the_logarithm_holds_where_erfc_is_zero() -> None:
    deviations = np.concatenate([[0.0, 1e-8], np.logspace(-3, 7, 60)])
    found = log_tail(deviations[:, None], np.zeros(1), np.ones(1))
    np.testing.assert_allclose(found, [log_erfc(x / math.sqrt(2)) for x in deviations], rtol=1e-9, atol=1e-12)
    assert math.erfc(40 / math.sqrt(2)) == 0
    assert (np.diff(found) < 0).all()


def test_a_fit_with_another_is_the_fit_of_all() -> None:
    latents = draw(30)[1].astype(np.float64) + 1e4
    grown = DiagonalGaussian.fitted(latents[:1])
    for row in latents[1:]:
        grown = grown.with_another(row)
    np.testing.assert_allclose(grown.mean, latents.mean(0), rtol=1e-12)
    np.testing.assert_allclose(grown.scale(1e-3), latents.std(0), rtol=1e-6)
    assert grown.count == 30


def test_a_hundred_thousand_candidates() -> None:
    """Far from zero, in single precision, some of them absurdly far out: sums neither lose their digits nor overflow."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((100_000, 50), np.float32) + np.float32(1000)
    latents[-5:] *= np.float32(1e6)
    pool = make_pool(100_000, labeled=range(0, 1000, 10))
    began = time.monotonic()
    selection = ask(Bsq(n_unc=1000), pool, np.arange(100_000.0), latents, 20)
    assert time.monotonic() - began < 10
    assert np.isfinite(selection.scores).all()
    centred = DiagonalGaussian.fitted(latents[:-5])
    plain = latents[:-5].astype(np.float64)
    np.testing.assert_allclose(centred.mean, plain.mean(0), rtol=1e-10)
    np.testing.assert_allclose(centred.scale(1e-3), plain.std(0), rtol=1e-9)
    rows, scores = likelihood_ratio_rows(
        latents, 2, labeled=pool.labeled, candidates=pool.candidates, refit=True, floor=1e-3
    )
    assert rows[0] >= 99_995
    assert np.isfinite(scores).all()


# --- the learner


TINY = info_vae(size=32, channels=(4, 8, 8), latents=6)
"""The same learner, small."""


def shapes(count: int, size: int, seed: int = 0) -> Tensor:
    """(count, 1, size, size) discs of many places and sizes, mean 0, standard deviation 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    drawn = [((y - a) ** 2 + (x - b) ** 2 < r**2) for a, b, r in rng.uniform(0.2, 0.5, (count, 3))]
    stack = torch.tensor(np.stack(drawn), dtype=torch.float32)[:, None]
    return (stack - stack.mean()) / stack.std()


def slices(data: Tensor) -> Slices:
    zeros = np.zeros(len(data), np.int64)
    return Slices(data, zeros, zeros, np.arange(len(data)), zeros.astype(bool))


def trained(learner: Representation, data: Tensor, epochs: int, seed: int = 0) -> InfoVAE:
    weights = training.train(learner, slices(data), RepresentationSettings(epochs, seed), CPU, lambda **progress: None)
    network = learner.network(seed + 100)
    network.load_state_dict(weights)
    assert isinstance(network, InfoVAE)
    return network.eval()


def test_the_learner_is_the_papers() -> None:
    learner = representation.get("info_vae")
    assert (learner.name, learner.size, learner.outputs, learner.uses_labels) == ("info_vae", (96, 96), 200, False)
    network = learner.network(0).eval()
    assert isinstance(network, InfoVAE)
    for part, kind in ((network.encoder, nn.Conv2d), (network.decoder, nn.ConvTranspose2d)):
        assert sum(isinstance(module, kind) for module in part.modules()) == 5
    with torch.inference_mode():
        data = torch.randn(2, 1, 96, 96, generator=torch.Generator().manual_seed(0))
        mean, log_variance = network.posterior(data)
        assert torch.equal(network(data), mean)
        assert mean.shape == log_variance.shape == (2, 200)
        assert network.decode(mean).shape == data.shape
    with pytest.raises(ValueError, match="divisible by 32, got 100"):
        InfoVAE(100)


@pytest.mark.parametrize(("n", "m", "dims", "sigma"), [(1, 1, 3, 1.0), (5, 7, 4, 1.0), (6, 6, 200, 0.5)])
def test_mmd_against_a_loop_over_pairs(n: int, m: int, dims: int, sigma: float) -> None:
    rng = np.random.default_rng(0)
    q, p = rng.standard_normal((n, dims)) + 1, rng.standard_normal((m, dims))

    def mean_similarity(a: Array, b: Array) -> float:
        pairs = [sum((x - y) ** 2 for x, y in zip(u, v, strict=True)) / dims for u in a for v in b]
        return sum(math.exp(-squared / (2 * sigma**2)) for squared in pairs) / len(pairs)

    expected = mean_similarity(q, q) + mean_similarity(p, p) - 2 * mean_similarity(q, p)
    assert float(mmd(torch.tensor(q), torch.tensor(p), sigma)) == pytest.approx(expected, rel=1e-9)
    assert float(mmd(torch.tensor(q), torch.tensor(q), sigma)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(0.1, 0.0), (4.0, 0.0), (1.0, 2.0)])
def test_mmd_draws_codes_to_the_prior_in_two_hundred_dimensions(scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prior, codes = torch.randn(2, 64, 200, generator=generator)
    codes = (codes * scale + shift).requires_grad_()

    def gradient(sigma: float) -> Tensor:
        return torch.autograd.grad(mmd(codes, prior, sigma), codes)[0]

    uphill = gradient(1.0) / gradient(1.0).norm()
    if shift:
        assert float(uphill.sum()) > 10
    else:
        assert float((uphill * codes.detach()).sum()) * (scale - 1) > 0.1
    if scale >= 1:
        # The kernel without the division by D gives nothing to go by.
        assert not gradient(1 / math.sqrt(200)).any()


def test_training_is_deterministic_and_leaves_the_generator_alone() -> None:
    data, state = shapes(40, 32), torch.get_rng_state()
    first, again, other = (trained(TINY, data, 2, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["mean.weight"], other["mean.weight"])


def test_training_tells_how_far_it_is() -> None:
    told: list[dict[str, Any]] = []
    training.train(
        TINY, slices(shapes(BATCH + 1, 32)), RepresentationSettings(2, 0), CPU, lambda **progress: told.append(progress)
    )
    assert [(p["epoch"], p["epochs"], p["fraction"]) for p in told] == [
        (1, 2, 0.25),
        (1, 2, 0.5),
        (2, 2, 0.75),
        (2, 2, 1),
    ]
    assert all(math.isfinite(p["loss"]) for p in told)


@pytest.mark.parametrize(("count", "epochs"), [(1, 2000), (32, 2000), (33, 1000), (1500, 43), (50_000, 5)])
def test_a_small_pool_is_passed_over_more_often(count: int, epochs: int) -> None:
    assert default_epochs(count) == epochs


def test_it_learns_to_reconstruct_and_its_codes_are_finite() -> None:
    data, learner = shapes(128, 32), info_vae(size=32, channels=(16, 32, 64, 128), latents=16)

    def error(network: nn.Module) -> float:
        assert isinstance(network, InfoVAE)
        with torch.inference_mode():
            codes = network(data)
            assert torch.isfinite(codes).all()
            return float((network.decode(codes) - data).square().mean())

    assert error(trained(learner, data, 20)) < 0.7 * error(learner.network(0).eval())


def test_one_slice_is_enough() -> None:
    data = torch.zeros(1, 1, 32, 32)
    assert torch.isfinite(trained(TINY, data, 1)(data)).all()


# --- the learner in front of a pool


@pytest.mark.parametrize("whole", [False, True], ids=["slices", "volumes"])
def test_a_sweep_trains_the_learner_once_and_finds_it_again(tmp_path: Path, whole: bool) -> None:
    rng = np.random.default_rng(0)
    located, lengths = {}, (4, 3, 5)
    for number, length in enumerate(lengths):
        path = f"image_{number}.nii.gz"
        voxels = rng.normal(size=(24, 20, length)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / path)
        located[f"image_{number}"] = {"path": path, "axis": 2, "version": 1, "n_slices": length}
    volume = np.arange(3) if whole else np.repeat(np.arange(3), lengths)
    position = np.full(3, WHOLE) if whole else np.concatenate([np.arange(n) for n in lengths])
    labeled = np.arange(len(volume)) == 0
    pool = Pool(
        ItemTable(list(located), volume, position), labeled, np.zeros_like(labeled), volume, volume.copy(), position
    )
    spec, reports = models.get("unet2d", labels=("a", "b")), list[dict[str, Any]]()
    folder = WeightsFolder(tmp_path / "state" / "models" / "unet2d")
    digest = folder.publish(spec.network(0).state_dict(), {"labels": ["a", "b"]}, at=0)
    worker: Any = SimpleNamespace(
        spec=spec,
        weights=folder,
        config=SimpleNamespace(device="cpu", sweep_batch=8, seed=0, representation_epochs=1),
        workplace=SimpleNamespace(root=tmp_path, state=tmp_path / "state"),
        fetching=lambda image_id: is_here,
        loop=SimpleNamespace(catalogue=SimpleNamespace(located=lambda: located), clock=lambda: 1.0),
        report=lambda **progress: reports.append(progress),
        unreadable=lambda image_id, reason: pytest.fail(reason),
        warn=pytest.fail,
    )
    strategy = Bsq(passes=2)
    swept = SweepSource(worker, digest)(pool, strategy.needs)
    assert not swept.unreadable.any()
    (card,) = WeightsFolder(tmp_path / "state" / "models" / "info_vae").cards()
    assert (card["slices"], card["settings"]) == (12, {"epochs": 1, "seed": 0})
    assert any(report.get("training") == "info_vae" for report in reports)

    learner = representation.get("info_vae")
    network = learner.network(0)
    network.load_state_dict(WeightsFolder(tmp_path / "state" / "models" / "info_vae").load(card["digest"]))
    sources = [Source(image_id, tmp_path / entry["path"], 2) for image_id, entry in located.items()]
    latents = np.full((len(pool), 200), np.nan, np.float32)

    def emit(rows: Array, values: Any) -> None:
        latents[rows] = values[INFO_VAE_LATENT.name]

    views = EmbeddingViews(learner, network.eval(), pool, sources, device=CPU, unreadable=worker.unreadable)
    sweep(views, [INFO_VAE_LATENT], np.arange(len(pool)), emit)
    np.testing.assert_allclose(swept.signals[INFO_VAE_LATENT.name], latents, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        image = np.asarray(nib.load(tmp_path / "image_1.nii.gz").dataobj)
        codes = network(slices_of(image, 2, (96, 96))).numpy()
    expected = codes.mean(0, keepdims=True) if whole else codes
    np.testing.assert_allclose(latents[volume == 1], expected, rtol=1e-4, atol=1e-5)
    assert INFO_VAE_LATENT.view == Embedding()

    selection = strategy.ask(pool, swept.signals, 2, seed=0, round_no=1)
    uncertainty = swept.signals[strategy.uncertainty.name]
    assert selection.rows.tolist() == slow_bsq(pool, uncertainty, latents, 2)[0]

    labeled[1] = True
    reports.clear()
    again = SweepSource(worker, digest)(pool, strategy.needs)
    assert not any("training" in report for report in reports)
    assert len(WeightsFolder(tmp_path / "state" / "models" / "info_vae").cards()) == 1
    np.testing.assert_array_equal(again.signals[INFO_VAE_LATENT.name], swept.signals[INFO_VAE_LATENT.name])

    located["image_0"]["version"] = 2
    SweepSource(worker, digest)(pool, strategy.needs)
    assert any("training" in report for report in reports), "another image needs another training"
