"""Auxiliary heads: what they compute, what teaches them, and that they learn it."""

import itertools
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import models
from bench.phantom import LABELS, make_phantom
from infers.engine import Segmenter
from loop.config import AppConfig
from loop.errors import BadInput, NotFound
from loop.views import Difficulty, PredictedLoss
from models import heads
from models.heads import DifficultyHead, LossHead
from models.plans import Plans
from models.preprocess import IGNORED
from trainers.data import Case, Data, load
from trainers.engine import train
from trainers.heads import HeadsInTraining, difficulty_loss, margin_ranking
from trainers.losses import partial_dice_ce
from trainers.settings import Settings

CPU = torch.device("cpu")
PLANS = Plans.read(Path(__file__).parent / "plans_2d.json")
pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = Settings(epochs=3, steps_per_epoch=1, batch_size=2, learning_rate=3e-3, seed=1)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- what they compute


def test_the_names_are_those_of_the_views_and_of_the_setting() -> None:
    (choices,) = (spec.metadata["choices"] for spec in fields(AppConfig) if spec.name == "heads")
    assert heads.names() == sorted({PredictedLoss.head, Difficulty.head}) == sorted(choices)
    with pytest.raises(BadInput, match="heads must be one of deal, learning_loss, got 'tail'"):
        AppConfig(heads=("deal", "tail")).check()
    with pytest.raises(NotFound, match=r"no head .tail.\. Known: deal, learning_loss"):
        heads.build("tail", models.get("unet2d", labels=("a",)), 0)


def test_a_model_without_feature_levels_has_no_learning_loss() -> None:
    spec = replace(models.get("unet2d", labels=("a",)), loss_layers=())
    assert heads.available(spec) == {"deal"}
    heads.check(["deal"], spec)
    with pytest.raises(BadInput, match="'unet2d' does not say which layers a learning loss looks at"):
        heads.check(["deal", "learning_loss"], spec)


def note_width(seen: dict[str, int], name: str, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
    """A forward hook."""
    seen[name] = out.shape[1]


@pytest.mark.parametrize("name", models.names())
def test_the_feature_levels_are_as_wide_as_declared(name: str) -> None:
    spec = models.get(name, labels=("a",), plans=PLANS)
    network, seen = spec.network(0), dict[str, int]()
    for layer, _ in spec.loss_layers:
        network.get_submodule(layer).register_forward_hook(partial(note_width, seen, layer))
    network(randn(1, 1, *(2 * n for n in spec.divisors)))
    assert tuple(seen.items()) == spec.loss_layers
    assert len(seen) == (3 if name == "nnunet" else 4)  # the plans of the tests have three levels


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
def test_the_loss_head_equals_a_plain_computation(shape: tuple[int, ...]) -> None:
    maps = [randn(3, width, *shape, seed=width) for width in (2, 5, 3)]
    head = LossHead([2, 5, 3])
    found = head(heads.pooled(maps)).detach().numpy()
    state = {key: value.numpy() for key, value in head.state_dict().items()}
    for item in range(3):
        hidden = np.concatenate(
            [
                np.maximum(0, state[f"levels.{at}.weight"] @ level[item].flatten(1).mean(1).numpy() + state[f"levels.{at}.bias"])
                for at, level in enumerate(maps)
            ]
        )  # fmt: skip
        assert found[item] == pytest.approx(float(state["out.weight"][0] @ hidden + state["out.bias"][0]), rel=1e-4)


def difficulty_head(dims: int, channels: int) -> DifficultyHead:
    head = DifficultyHead(dims, channels)
    for number, parameter in enumerate(head.parameters()):
        nn.init.constant_(parameter, 0.7)
        with torch.no_grad():
            parameter += randn(*parameter.shape, seed=number)
    return head


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
def test_the_attention_equals_a_loop_over_all_pairs_of_pixels(shape: tuple[int, ...]) -> None:
    probs = (2 * randn(2, 3, *shape)).softmax(1)
    head = difficulty_head(len(shape), 3)
    found = head(probs).detach().flatten(1)
    weight, bias = head.conv.weight.detach().flatten(), float(head.conv.bias.detach()[0])
    for item, pixels in enumerate(probs.flatten(2)):
        for j, p in enumerate(pixels.T):
            similar = [float(torch.exp(p @ q)) for q in pixels.T]
            mixed = sum((s * q for s, q in zip(similar, pixels.T, strict=True)), torch.zeros(3)) / sum(similar)
            logit = float(weight @ (head.gamma.detach() * mixed + p)) + bias
            assert float(found[item, j]) == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)


@pytest.mark.parametrize("shape", [(70, 31), (17, 9, 20)])
def test_the_attention_of_a_large_map_is_near_that_of_all_its_pixels(shape: tuple[int, ...]) -> None:
    smooth = torch.stack(torch.meshgrid(*(torch.linspace(-2, 2, n) for n in shape), indexing="ij"))[None]
    probs, head = smooth.softmax(1), difficulty_head(len(shape), len(shape))
    coarse = head(probs)
    head.cells = 1000
    assert coarse.shape == (1, 1, *shape)
    torch.testing.assert_close(coarse, head(probs), atol=0.01, rtol=0)


# --- what teaches them


@pytest.mark.parametrize("n", [0, 1, 2, 5, 8])
def test_margin_ranking_equals_a_loop_over_pairs(n: int) -> None:
    predicted, true = randn(n, seed=1), randn(n, seed=2)
    if n == 8:
        true[0] = true[7]
    each = []
    for i, j in itertools.combinations(range(n), 2):
        if i + j == n - 1:
            sign = 1 if true[i] > true[j] else -1
            each.append(max(0.0, 1 - sign * float(predicted[i] - predicted[j])))
    assert len(each) == n // 2
    assert float(margin_ranking(predicted, true)) == pytest.approx(np.mean(each) if each else 0, rel=1e-5)


@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.1])
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
def test_the_difficulty_loss_equals_a_plain_loop_and_leaves_the_network_alone(
    shape: tuple[int, ...], ignored: float
) -> None:
    logits, head = (3 * randn(2, 3, *shape)).requires_grad_(), difficulty_head(len(shape), 3)
    target = torch.randint(3, (2, *shape), generator=torch.Generator().manual_seed(0))
    target = torch.where(randn(2, *shape, seed=4).sigmoid() < ignored * 0.5, IGNORED, target) if ignored < 1 else (
        torch.full_like(target, IGNORED)
    )  # fmt: skip
    loss = difficulty_loss(head, logits, target)
    loss.backward()
    assert logits.grad is None
    difficulty, guess = head(logits.detach().softmax(1))[:, 0].detach(), logits.argmax(1)
    costs: dict[bool, list[float]] = {False: [], True: []}
    for at in np.ndindex(*target.shape):
        if target[at] != IGNORED:
            wrong = bool(guess[at] != target[at])
            costs[wrong].append(-float(np.log(float(difficulty[at] if wrong else 1 - difficulty[at]))))
    weights = {wrong: 1 / np.sqrt(len(each) + 1) for wrong, each in costs.items()}
    expected = sum(weights[wrong] * np.mean(each) for wrong, each in costs.items() if each) / sum(weights.values())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_after_its_share_of_the_epochs_the_loss_head_no_longer_moves_the_network() -> None:
    spec = models.get("unet2d", labels=("a",))
    network = spec.network(0)
    both = HeadsInTraining(spec, network, ["learning_loss"], 0, CPU)
    target = torch.randint(2, (4, 16, 16), generator=torch.Generator().manual_seed(0))
    target[1] = IGNORED
    for trained, moves in ((0.0, True), (0.59, True), (0.6, False), (0.9, False)):
        network.zero_grad()
        both.loss(network(randn(4, 1, 16, 16)).detach(), target, trained).backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in network.parameters()) == moves
    both.close()


def test_items_that_nobody_annotated_take_no_part() -> None:
    spec = models.get("unet2d", labels=("a",))
    network = spec.network(0).eval()
    training = HeadsInTraining(spec, network, ["learning_loss"], 0, CPU)
    data, target = randn(3, 1, 16, 16), torch.randint(2, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    alone = float(training.loss(network(data), target, 0.0).detach())
    blank = torch.full_like(target[:1], IGNORED)
    both = torch.cat([target[:1], blank, target[1:], blank])
    logits = network(torch.cat([data[:1], randn(1, 1, 16, 16, seed=5), data[1:], data[:1]]))
    assert float(training.loss(logits, both, 0.0).detach()) == pytest.approx(alone, rel=1e-4)
    assert float(training.loss(logits, torch.full_like(both, IGNORED), 0.0).detach()) == 0


# --- that they learn it


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Three small phantom patients of which every second slice is annotated."""
    folder, cases = tmp_path_factory.mktemp("phantoms"), []
    for number in range(3):
        phantom = make_phantom(np.random.default_rng(number), setting=number % 2, shape=(40, 40, 12))
        paths = [folder / f"{number}_{kind}.nii.gz" for kind in ("image", "label")]
        for path, array in zip(paths, (phantom.image, phantom.label), strict=True):
            nib.save(nib.Nifti1Image(array, phantom.affine), path)
        cases.append(Case(str(number), paths[0], paths[1], 2, range(0, 12, 2), "training"))
    return cases


def seen_by(spec: models.ModelSpec, weights: dict[str, Tensor], data: Data) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True and predicted loss of each training item; difficulty of the right and of the wrong pixels."""
    segmenter = Segmenter(spec, weights, device=CPU)
    watch = HeadsInTraining(spec, segmenter.network, ["learning_loss"], 0, CPU)
    true, predicted, right, wrong = list[float](), list[Tensor](), list[Tensor](), list[Tensor]()
    with torch.inference_mode():
        for loaded in data.training:
            logits = segmenter.network(loaded.data)
            levels = [watch._seen[name] for name, _ in spec.loss_layers]
            predicted.append(segmenter.heads["learning_loss"](heads.pooled(levels)))
            true += [
                float(partial_dice_ce(logits[row : row + 1], loaded.target[row : row + 1]))
                for row in range(len(logits))
            ]
            difficulty, error = segmenter.heads["deal"](logits.softmax(1))[:, 0], logits.argmax(1) != loaded.target
            right.append(difficulty[~error])
            wrong.append(difficulty[error])
    return torch.tensor(true), torch.cat(predicted), torch.cat(right), torch.cat(wrong)


def test_after_a_short_training_they_know_where_the_network_is_wrong(phantoms: list[Case]) -> None:
    spec = models.get("unet2d", labels=LABELS)
    data = load(spec, phantoms)
    settings = Settings(epochs=5, steps_per_epoch=16, batch_size=8, learning_rate=3e-3, seed=0)
    trained = train(spec, data, settings, device=CPU, heads=heads.names())
    true, predicted, right, wrong = seen_by(spec, dict(trained.weights), data)
    assert stats.spearmanr(true, predicted).statistic > 0.3
    assert wrong.mean() > right.mean() + 0.02
    assert 0 < float(right.min()) < float(wrong.max()) < 1


@pytest.mark.parametrize("name", models.names())
def test_heads_are_kept_beside_the_network_and_are_trained_on_from_there(phantoms: list[Case], name: str) -> None:
    spec = models.get(name, labels=LABELS, plans=PLANS)
    data = load(spec, phantoms[:1])
    plain = train(spec, data, SETTINGS, device=CPU).weights
    beside = train(spec, data, SETTINGS, device=CPU, heads=["deal"]).weights
    assert heads.of_heads(plain) == {}
    assert heads.without_heads(beside).keys() == plain.keys()
    assert all(torch.equal(plain[key], beside[key]) for key in plain), "the difficulty is learned without a say in it"
    both = train(spec, data, SETTINGS, device=CPU, heads=heads.names()).weights
    again = train(spec, data, SETTINGS, device=CPU, heads=heads.names()).weights
    assert all(torch.equal(both[key], again[key]) for key in both)
    assert set(heads.of_heads(both)) == set(heads.names())
    assert not all(torch.equal(plain[key], both[key]) for key in plain)
    gently = replace(SETTINGS, learning_rate=1e-9)
    further = train(spec, data, gently, device=CPU, heads=heads.names(), start=both).weights
    assert max(float((further[key] - both[key]).abs().max()) for key in both if key.startswith("heads.")) < 1e-6
    # A head that nobody wants any more is no obstacle, nor is one that was not there before.
    assert heads.of_heads(train(spec, data, gently, device=CPU, start=both).weights) == {}
    assert set(heads.of_heads(train(spec, data, gently, device=CPU, start=plain, heads=["deal"]).weights)) == {"deal"}


def test_a_head_of_another_model_is_refused(phantoms: list[Case], tmp_path: Path) -> None:
    spec, other = (models.get("unet2d", labels=labels) for labels in (LABELS, ("a",)))
    foreign = heads.named("deal", heads.build("deal", other, 0).state_dict())
    weights = {**spec.network(0).state_dict(), **foreign}
    with pytest.raises(BadInput, match="do not fit the model 'unet2d, head deal'"):
        Segmenter(spec, weights, device=CPU)
