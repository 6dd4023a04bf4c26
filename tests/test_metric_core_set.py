"""The metric-learning core-set: its batches, losses and views beside plain loops, and a first round without a model."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import models.learners  # noqa: F401 - makes the learners known
import strategies
import trainers.learners  # noqa: F401 - and how each is trained
from bench import phantom
from bench.contrastive_distances import mean_distances
from loop.errors import BadInput
from loop.pool import ItemTable, Pool
from models import representation
from models.contrastive import CONTRASTIVE
from models.weights import load_into
from trainers import contrastive
from trainers.contrastive import Weights, contrastive_loss, group_contrastive, nt_xent, weights_for
from trainers.group_batches import GroupBatches
from trainers.representation import RepresentationSettings, Slices, train
from trainers.view_augmentation import random_views

Array = np.ndarray
CPU = torch.device("cpu")
SMALL = replace(CONTRASTIVE, size=(32, 32))

pytestmark = pytest.mark.usefixtures("one_thread")


def layout(patients: Sequence[Sequence[int]]) -> tuple[Array, Array, Array]:
    """volume, patient and position of patients whose volumes have so many slices."""
    lengths = [length for volumes in patients for length in volumes]
    volume = np.repeat(np.arange(len(lengths)), lengths)
    patient = np.repeat([p for p, volumes in enumerate(patients) for _ in volumes], lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    return volume.astype(np.int64), patient.astype(np.int64), position.astype(np.int64)


# --- the loss


def slow_terms(z: Array, volume: Array, patient: Array, position: Array) -> tuple[float, dict[str, float]]:
    """NT-Xent and the three group terms, pair by pair."""
    views = [
        (v, p, s, row) for _ in range(2) for row, (v, p, s) in enumerate(zip(volume, patient, position, strict=True))
    ]

    def similar(i: int, j: int) -> float:
        return float(z[i] @ z[j]) / (math.sqrt(float(z[i] @ z[i])) * math.sqrt(float(z[j] @ z[j]))) / 0.5

    def loss(i: int, j: int, compared: Callable[[int], bool]) -> float:
        total = sum(math.exp(similar(i, k)) for k in range(len(views)) if k != i and compared(k))
        return -math.log(math.exp(similar(i, j)) / total)

    groups: dict[str, Callable[[int, int], bool]] = {
        "patient": lambda i, j: views[i][1] == views[j][1],
        "volume": lambda i, j: views[i][0] == views[j][0],
        "adjacent": lambda i, j: views[i][0] == views[j][0] and abs(views[i][2] - views[j][2]) <= 1,
    }
    everyone = range(len(views))
    own = [loss(i, j, lambda k: True) for i in everyone for j in everyone if i != j and views[i][3] == views[j][3]]
    terms = {}
    for name, together in groups.items():
        pairs = [
            loss(i, j, lambda k, i=i, together=together: together(i, k) or views[k][1] != views[i][1])  # type: ignore[misc]
            for i in everyone
            for j in everyone
            if i != j and together(i, j)
        ]
        terms[name] = sum(pairs) / len(pairs)
    return sum(own) / len(own), terms


BATCHES = {
    "three patients": ([0, 0, 1, 2, 2, 2, 3, 3, 4], [0, 0, 0, 1, 1, 1, 2, 2, 2], [3, 4, 0, 5, 6, 9, 1, 3, 0]),
    "nobody shares": ([0, 1, 2], [0, 1, 2], [0, 0, 5]),
    "one patient": ([0, 0, 1], [0, 0, 0], [0, 1, 1]),
    "one slice": ([0], [0], [0]),
}


@pytest.mark.parametrize(
    "weights",
    [Weights(), Weights(1, 0, 0.35, 0), Weights(1, 0.05, 0.35, 0.025), Weights(0, 0.3, 0.3, 0.3), Weights(0, 0, 0, 1)],
    ids=str,
)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_loss_is_the_sum_over_pairs(batch: tuple[list[int], ...], weights: Weights) -> None:
    numbers = [torch.tensor(values) for values in batch]
    z = torch.randn(2 * len(batch[0]), 5, generator=torch.Generator().manual_seed(1)).mul_(3).requires_grad_()
    found = contrastive_loss(z, *numbers, weights=weights)
    own, terms = slow_terms(z.detach().double().numpy(), *(np.array(values) for values in batch))
    expected = weights.nt_xent * own + sum(getattr(weights, name) * value for name, value in terms.items())
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    found.backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_the_denominator_leaves_out_whom_the_group_leaves_out() -> None:
    # Views 0 and 1 are a group, 2 is of their patient, 3 of another: 2 is nobody's negative here, and 3 is.
    same_group = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    same_patient = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    similarity = torch.tensor([[9.0, 1, 7, 2], [1, 9, 7, 3], [7, 7, 9, 4], [2, 3, 4, 9]])
    expected = [math.log(math.exp(1) + math.exp(other)) - 1 for other in (2, 3)]
    assert group_contrastive(similarity, same_group, same_patient).item() == pytest.approx(np.mean(expected))
    similarity[:2, 2] = similarity[2, :2] = 70
    assert group_contrastive(similarity, same_group, same_patient).item() == pytest.approx(np.mean(expected))


def test_identical_and_opposite_views() -> None:
    # Both views of a slice agree and the slices are orthogonal: of three others, one at 1 / 0.5 and two at 0.
    z = torch.eye(2).repeat(2, 1)
    assert nt_xent(z @ z.T / 0.5).item() == pytest.approx(math.log(math.exp(2) + 2) - 2)
    nothing = contrastive_loss(torch.zeros(4, 3), *(torch.tensor([0, 1]) for _ in range(3)), weights=Weights())
    assert torch.isfinite(nothing)


def test_weights_follow_from_the_volumes_of_a_patient() -> None:
    assert weights_for(*layout([[4, 4], [3]])[:2]) == Weights(1, 0.05, 0.35, 0)
    assert weights_for(*layout([[4], [3]])[:2]) == Weights(1, 0, 0.35, 0)
    assert [w.batch_size for w in (Weights(), Weights(patient=0), Weights(adjacent=1), Weights(1, 0, 0, 0))] == [
        9,
        8,
        8,
        8,
    ]
    with pytest.raises(ValueError, match="less than 0"):
        Weights(volume=-1)


# --- the batches


def sampler(patients: Sequence[Sequence[int]], size: int = 8, **kinds: bool) -> GroupBatches:
    kinds = {"adjacent": True, "same_volume": True, "same_patient": True} | kinds
    return GroupBatches(*layout(patients), size=size, **kinds)


def test_a_group_has_a_neighbour_one_of_the_volume_and_one_of_the_patient() -> None:
    volume, patient, position = layout([[5, 4], [6]])
    batches, rng = sampler([[5, 4], [6]]), np.random.default_rng(0)
    seen: dict[int, Counter[tuple[int, int]]] = {}
    for row in [*range(15)] * 60:
        group = batches.group(row, rng)
        assert group[0] == row
        assert len(set(group)) == len(group) == 4
        _, near, of_volume, of_patient = group
        assert volume[near] == volume[row] == volume[of_volume]
        assert abs(position[near] - position[row]) == 1
        assert patient[of_patient] == patient[row]
        seen.setdefault(row, Counter()).update(enumerate(group))
    # Of every row, each that may come does come: both neighbours, all of the volume, all of the patient.
    assert {row for place, row in seen[2] if place == 1} == {1, 3}
    assert {row for place, row in seen[2] if place == 2} == {0, 1, 3, 4}
    assert {row for place, row in seen[2] if place == 3} == set(range(9)) - {2}
    assert abs(seen[2][1, 1] - 30) < 20


@pytest.mark.parametrize(
    ("kinds", "length"), [({}, 4), ({"adjacent": False}, 3), ({"same_patient": False, "adjacent": False}, 2)]
)
def test_groups_that_weigh_nothing_are_left_out(kinds: dict[str, bool], length: int) -> None:
    assert len(sampler([[5, 4], [6]], **kinds).group(3, np.random.default_rng(0))) == length


@pytest.mark.parametrize(
    ("patients", "size", "groups"),
    [
        ([[5, 4], [6, 5], [4, 4], [7]], 8, 2),
        ([[5, 4], [6, 5], [4, 4], [7]], 12, 3),
        ([[1]], 8, 1),
        ([[1], [1]], 8, 2),
        ([[2, 1], [1, 1], [2]], 8, 2),
        ([[9]], 8, 1),
        ([[1, 1, 1], [30]], 8, 2),
        ([[3], [3]], 1, 1),
    ],
    ids=str,
)
def test_batches_are_groups_of_distinct_patients(patients: list[list[int]], size: int, groups: int) -> None:
    batches, (_, patient, _) = sampler(patients, size), layout(patients)
    found = list(batches.epoch(np.random.default_rng(3)))
    assert 1 <= len(found) <= len(batches)
    begun = list[int]()
    for batch in found:
        owners = patient[batch]
        runs = np.split(batch, np.flatnonzero(np.diff(owners)) + 1)
        assert len(runs) == len(np.unique(owners)) == groups
        assert len(np.unique(batch)) == len(batch)
        begun += [int(run[0]) for run in runs]
    assert len(set(begun)) == len(begun)
    # It ended because too few patients had a group left.
    left = Counter(patient.tolist()) - Counter(patient[begun].tolist())
    assert len(left) < groups


def test_an_epoch_has_every_slice_when_patients_are_alike_and_each_is_in_every_batch() -> None:
    batches = sampler([[4], [4]])
    assert sorted(
        b for batch in batches.epoch(np.random.default_rng(0)) for b in (batch[0], batch[len(batch) // 2])
    ) == [*range(8)]


def test_batches_follow_from_the_generator_and_differ_between_epochs() -> None:
    batches = sampler([[5, 4], [6, 5], [4, 4], [7]])

    def epochs(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return [np.concatenate(list(batches.epoch(rng))).tolist() for _ in range(2)]

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)
    assert epochs(1)[0] != epochs(1)[1]


def test_rows_need_no_order_and_positions_no_beginning() -> None:
    volume, patient, position = layout([[3], [2]])
    order = np.array([4, 0, 2, 3, 1])
    batches = GroupBatches(
        volume[order], patient[order], position[order] * 2, adjacent=True, same_volume=True, same_patient=False, size=8
    )
    # Every second slice: nobody is next to anybody, and the company of the volume is still there.
    assert sorted(batches.group(1, np.random.default_rng(0)))[0] == 1
    assert len(batches.group(1, np.random.default_rng(0))) == 2


# --- views


def pictures(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def test_views_follow_from_the_generator() -> None:
    items = pictures(5)
    generator = torch.Generator().manual_seed(7)
    first, second = random_views(items, generator), random_views(items, generator)
    assert first.shape == items.shape
    torch.testing.assert_close(random_views(items, torch.Generator().manual_seed(7)), first)
    assert not torch.allclose(first, second)
    low, high = items.amin((1, 2, 3)), items.amax((1, 2, 3))
    assert (first.amin((1, 2, 3)) >= low - 1e-5).all()
    assert (first.amax((1, 2, 3)) <= high + 1e-5).all()


def test_a_constant_slice_stays_what_it_is() -> None:
    items = torch.full((50, 1, 32, 32), -3.5)
    torch.testing.assert_close(random_views(items, torch.Generator().manual_seed(0)), items)


def test_views_move_shrink_mirror_and_erase() -> None:
    # A bright upper left quarter, nothing elsewhere.
    items = torch.zeros(400, 1, 32, 32)
    items[:, :, 2:14, 2:14] = 1
    views = random_views(items, torch.Generator().manual_seed(0))[:, 0]
    assert 0.4 < (views[:, :, :16].sum((1, 2)) > views[:, :, 16:].sum((1, 2))).float().mean() < 0.6  # left or right
    assert (views[:, :16].sum((1, 2)) >= views[:, 16:].sum((1, 2))).float().mean() > 0.95  # never upside down
    # In the middle, where next to nothing moves out: a crop magnifies by 1.11, the rest by 1 in the mean.
    areas = (random_views(items.roll((8, 8), (2, 3)), torch.Generator().manual_seed(0)) > 0.5).float().sum(
        (1, 2, 3)
    ) / 144
    assert 0.95 < areas.median() < 1.25
    assert 1.4 < areas.max() < 1.2**2 / 0.8 * 1.1


def test_a_fifth_of_the_views_has_a_hole() -> None:
    items = torch.ones(1000, 1, 32, 32)
    items[:, :, 0, 0] = 0
    views = random_views(items, torch.Generator().manual_seed(0))[:, 0]
    # In the middle nothing comes in from outside: what is 0 there was erased.
    share = (views[:, 14:18, 14:18].amin((1, 2)) < 1e-6).float().mean()
    assert 0.02 < share < 0.2


# --- the encoder and its training


def slices(patients: Sequence[Sequence[int]], noise: float = 0.5, size: int = 32, seed: int = 0) -> Slices:
    """Every volume is a smooth picture of its own, like that of its patient, and every slice that with noise."""
    volume, patient, position = layout(patients)
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((patient.max() + 1, 4, 4))[patient]
    coarse = coarse + 0.3 * rng.standard_normal((volume.max() + 1, 4, 4))[volume]
    data = np.kron(coarse, np.ones((size // 4, size // 4))) + noise * rng.standard_normal((len(volume), size, size))
    return Slices(
        torch.from_numpy(data[:, None].astype(np.float32)), volume, patient, position, np.zeros(len(volume), bool)
    )


def silent(**progress: object) -> None:
    """A report that nobody reads."""


def test_the_encoder_is_a_resnet_18_with_512_numbers() -> None:
    encoder = CONTRASTIVE.network(0).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 1, *CONTRASTIVE.size)).shape == (2, CONTRASTIVE.outputs) == (2, 512)
    # That of a ResNet-18 with one input channel and without its last layer.
    assert sum(p.numel() for p in encoder.parameters()) == 11_170_240
    assert representation.get("contrastive") is CONTRASTIVE
    assert not CONTRASTIVE.uses_labels


def test_training_follows_from_the_seed_alone() -> None:
    data, before = slices([[3, 3], [4], [5]]), torch.random.get_rng_state()
    runs = [train(SMALL, data, RepresentationSettings(1, seed), CPU, silent) for seed in (3, 3, 4)]
    torch.testing.assert_close(torch.random.get_rng_state(), before)
    for key, value in runs[0].items():
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value, runs[1][key], rtol=0, atol=0)
    assert not torch.equal(runs[0]["conv1.weight"], runs[2]["conv1.weight"])
    load_into(SMALL.network(0), runs[0], SMALL.name)


def test_training_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[dict[str, Any]]()
    train(SMALL, slices([[2], [2]]), RepresentationSettings(2), CPU, lambda **progress: told.append(progress))
    assert [step["epoch"] for step in told] == [1, 1, 2, 2]
    assert [step["fraction"] for step in told] == [0.25, 0.5, 0.75, 1]
    assert all(math.isfinite(step["loss"]) and step["epochs"] == 2 for step in told)
    monkeypatch.setattr(contrastive, "EPOCHS", 4)
    monkeypatch.setattr(contrastive, "MOST_STEPS_ON_CPU", 3)
    told.clear()
    train(SMALL, slices([[2], [2]]), RepresentationSettings(), CPU, lambda **progress: told.append(progress))
    assert [(step["epoch"], step["epochs"]) for step in told] == [(1, 4), (1, 4), (2, 4)]
    assert told[-1]["fraction"] == 1


@pytest.mark.parametrize("patients", [[[1]], [[1], [1]], [[2, 1]], [[6]]], ids=str)
def test_training_ends_and_is_finite_on_next_to_nothing(patients: list[list[int]]) -> None:
    weights = train(SMALL, slices(patients), RepresentationSettings(1), CPU, silent)
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_training_on_nothing_is_refused() -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(BadInput, match="no slice to train contrastive on"):
        train(
            SMALL,
            Slices(torch.zeros(0, 1, 32, 32), none, none, none, none.astype(bool)),
            RepresentationSettings(1),
            CPU,
            silent,
        )


def test_training_brings_patients_together() -> None:
    data, network = slices([[4, 4], [4, 4], [4, 4]], noise=1.5), SMALL.network(0)

    def apart() -> float:
        with torch.inference_mode():
            found = mean_distances(network.eval()(data.data).numpy(), data)
        return found["patient"] / found["other"]

    before = apart()
    load_into(network, train(SMALL, data, RepresentationSettings(4), CPU, silent), SMALL.name)
    assert apart() < 0.85 * before < 0.85


# --- the strategy


def make_pool(labeled: Sequence[int] = (), held: Sequence[int] = ()) -> Pool:
    volume, patient, position = layout([[6, 6], [6, 6]])
    marks = [np.isin(np.arange(len(volume)), rows) for rows in (labeled, held)]
    return Pool(ItemTable([f"image_{n}" for n in range(4)], volume, position), *marks, volume, patient, position)


def slow_cover(features: Array, pool: Pool, k: int, begin: list[int]) -> tuple[list[int], list[float]]:
    centres, picks, distances = [*np.flatnonzero(pool.labeled), *begin], list[int](begin), list[float]()
    while len(picks) < k:
        best = max(
            (min(math.dist(features[row], features[c]) for c in centres), -row)
            for row in pool.candidates
            if row not in picks
        )
        distances.append(best[0])
        picks.append(-best[1])
        centres.append(-best[1])
    return picks, distances


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "pool", [make_pool([0, 9], [3, 4]), make_pool([], [3])], ids=["some labelled", "none labelled"]
)
def test_metric_core_set_covers_the_learned_features(pool: Pool, normalize: bool) -> None:
    features = np.random.default_rng(2).standard_normal((24, 7)).astype(np.float32) * np.arange(1, 25)[:, None]
    features[8] = 0  # has no direction
    features[pool.held] = np.nan
    strategy = strategies.get("metric_core_set", {"normalize": normalize})
    found = strategy.ask(pool, {"contrastive_features": features.astype(np.float32)}, 6, seed=0, round_no=1)
    expected = features.astype(np.float64)
    if normalize:
        lengths = np.sqrt((expected**2).sum(1, keepdims=True))
        expected = expected / np.where(lengths == 0, 1, lengths)
    picks, distances = slow_cover(expected, pool, 6, [] if pool.labeled.any() else [int(found.rows[0])])
    assert found.rows.tolist() == picks
    np.testing.assert_allclose(found.scores[-len(distances) :], distances, rtol=1e-5)


def test_normalize_is_off_and_changes_the_answer() -> None:
    features = np.random.default_rng(2).standard_normal((24, 7)).astype(np.float32) * np.arange(1, 25)[:, None]
    pool, signals = make_pool([0]), {"contrastive_features": features.astype(np.float32)}
    plain, normal, default = (
        strategies.get("metric_core_set", p).ask(pool, signals, 6, seed=0, round_no=1).rows.tolist()
        for p in ({"normalize": False}, {"normalize": True}, {})
    )
    assert plain == default != normal


def test_it_needs_the_encoder_and_no_segmentation_model() -> None:
    strategy = strategies.get("metric_core_set")
    assert [need.model for need in strategy.needs] == ["contrastive"]
    assert not strategy.needs_task_model


# --- the real server


@pytest.fixture
def few_slices(tmp_path: Path) -> Path:
    """Two phantom patients with two volumes each, every eighth slice of them."""
    root = tmp_path / "demo"
    phantom.write_phantoms(root, patients=2, seed=1, volumes_per_patient=2, shape=phantom.SMALL)
    for file in [*root.rglob("*.nii.gz")]:
        volume = nib.load(file)
        thin = volume.slicer[:, :, 4::8]
        nib.save(nib.Nifti1Image(np.asarray(thin.dataobj), thin.affine), file)
    return root


@pytest.mark.slow
def test_the_first_round_is_its_own_before_there_is_a_model(few_slices: Path, serve: Callable[..., Any]) -> None:
    server = serve(few_slices, budget="4", retrain="false", strategy="metric_core_set")
    server.wait_for("the first round", lambda progress: bool(progress["rounds"]))
    with server.client() as http:
        rounds = http.get("/al/rounds").json()
        assert [(row["strategy"], row["selected_by"], row["model"]) for row in rounds] == [
            ("metric_core_set",) * 2 + (None,)
        ]
        items = http.get(f"/al/rounds/{rounds[0]['id']}").json()["items"]
        assert len({(item["image"], item["slice"]) for item in items}) == 4
        sample = http.post("/activelearning/metric_core_set", json={"client_id": "tester"}).json()
        assert sample["ask"]["round"] == rounds[0]["id"]
        assert "drawn at random" in items[0]["why"]
        assert all("least like those chosen before it" in item["why"] for item in items[1:])
        # The encoder is there for other parameters of the same strategy: no second training.
        http.post(
            "/scoring/metric_core_set", params={"run_sync": True}, json={"parameters": {"normalize": True}}
        ).raise_for_status()
        assert http.get("/al/rounds").json()[0]["parameters"] == {"normalize": True}
        assert {job["status"] for job in http.get("/scoring/", params={"all": True}).json()} == {"DONE"}
    assert len(list(few_slices.rglob("models/contrastive/*.pt"))) == 1
