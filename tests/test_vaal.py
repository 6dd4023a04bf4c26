"""VAAL: what its networks are, how they are trained, and what is asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import models.learners  # noqa: F401 - makes the learners known
import trainers.learners  # noqa: F401 - makes the trainings known
from loop.pool import WHOLE, ItemTable, Pool
from models import representation
from models.vaal import VAAL, Vaal
from strategies import vaal as strategy
from trainers import representation as training
from trainers import vaal
from trainers.representation import RepresentationSettings, Slices

Array = np.ndarray
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def slices_of(data: Tensor, labeled: Array) -> Slices:
    """One volume of one patient."""
    nothing = np.zeros(len(data), np.int64)
    return Slices(data, nothing, nothing, np.arange(len(data)), labeled)


def noise(count: int) -> Tensor:
    return torch.randn(count, 1, *VAAL.size, generator=torch.Generator().manual_seed(count))


def discs_and_stripes(count: int) -> tuple[Tensor, Array]:
    """Images of two kinds, at random places and of random size, and which are stripes (count,)."""
    rng = np.random.default_rng(0)
    stripes = np.arange(count) % 2 == 1
    y, x = np.mgrid[: VAAL.size[0], : VAAL.size[1]]
    cy, cx = rng.uniform(20, 44, (2, count, 1, 1))
    r = rng.uniform(8, 14, (count, 1, 1))
    images = np.where(stripes[:, None, None], np.sin((y - cy) * 4 / r) > 0, (y - cy) ** 2 + (x - cx) ** 2 < r**2)
    noisy = images + rng.normal(0, 0.2, images.shape)
    return torch.from_numpy(noisy[:, None].astype(np.float32)), stripes


def trained(slices: Slices, *, epochs: int = 1, seed: int = 0, **told: Any) -> Vaal:
    weights = training.train(
        VAAL, slices, RepresentationSettings(epochs, seed), CPU, told.get("report", lambda **p: None)
    )
    network = VAAL.network(seed + 1)
    network.load_state_dict(weights)
    assert isinstance(network, Vaal)
    return network.eval()


def some_labeled(count: int, labeled: int) -> Slices:
    return slices_of(noise(count), np.arange(count) < labeled)


# --- the networks


def test_the_learner_is_known_and_learns_from_labels() -> None:
    assert representation.get("vaal") is VAAL
    assert VAAL.uses_labels
    assert VAAL.network(0)(noise(3)).shape == (3, VAAL.outputs) == (3, 1)


def test_the_logit_is_the_discriminators_of_the_latent_mean() -> None:
    network = VAAL.network(0)
    assert isinstance(network, Vaal)
    data = noise(4)
    mean, log_variance = network.encode(data)
    assert mean.shape == log_variance.shape == (4, 32)
    assert network.decode(mean).shape == data.shape
    # In training mode too: nothing is drawn, and an item's logit does not depend on the others of its batch.
    torch.testing.assert_close(network.train()(data), network.discriminate(mean))
    torch.testing.assert_close(torch.cat([network(data[i : i + 1]) for i in range(4)]), network(data))


# --- the training


def test_the_kind_that_nobody_labelled_scores_higher() -> None:
    data, stripes = discs_and_stripes(110)
    labeled = ~stripes & (np.arange(110) < 40)
    network = trained(slices_of(data, labeled), epochs=18)
    with torch.inference_mode():
        scores = strategy.VAAL_UNLABELED.reduce(network(data)).numpy()
    other, same = scores[stripes], scores[~stripes & ~labeled]
    assert (other[:, None] > same).mean() > 0.9
    # More likely unlabelled than labelled: the discriminator was told that they are not.
    assert (other > 0).mean() > 0.9


def test_training_is_seeded_and_leaves_torch_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (trained(some_labeled(9, 3), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for key, value in first.items():
        assert torch.equal(value, again[key]), key
    assert not torch.equal(first["discriminator.0.weight"], other["discriminator.0.weight"])


def test_autoencoder_and_discriminator_are_both_trained() -> None:
    fresh, slices = VAAL.network(0).state_dict(), some_labeled(40, 5)
    for key, value in trained(slices).state_dict().items():
        assert not torch.equal(value, fresh[key]), key


def test_training_tells_how_far_it_is() -> None:
    told: list[dict[str, Any]] = []
    trained(some_labeled(40, 3), epochs=2, report=lambda **progress: told.append(progress))
    fractions = [progress["fraction"] for progress in told]
    # 37 unlabelled ones are two batches of 32.
    assert fractions == [0.25, 0.5, 0.5, 0.75, 1, 1]
    losses = [progress["loss"] for progress in told if "loss" in progress]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert {progress["epochs"] for progress in told} == {2}
    assert told[-1]["epoch"] == 2


@pytest.mark.parametrize(("steps", "epochs"), [(1, 50), (40, 50), (41, 48), (1500, 1), (9000, 1)])
def test_large_pools_are_passed_less_often(steps: int, epochs: int) -> None:
    assert vaal._epochs(steps) == epochs


def test_the_loss_of_the_autoencoder_is_the_bound_a_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    decoded, data = torch.randn(2, 3, 1, 4, 4, generator=generator)
    mean, log_variance = torch.randn(2, 3, 5, generator=generator)
    divergence = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    expected = ((decoded - data).square().flatten(1).sum(1) + divergence).mean() / 16
    torch.testing.assert_close(vaal._autoencoding(decoded, data, mean, log_variance), expected)


def test_rows_are_drawn_in_whole_passes() -> None:
    order = vaal._Shuffled(torch.tensor([3, 5, 8]), torch.Generator().manual_seed(0))
    drawn = torch.cat([order.next(count) for count in (1, 4, 7)]).reshape(4, 3)
    assert drawn.sort(1).values.tolist() == [[3, 5, 8]] * 4
    assert len({tuple(turn) for turn in drawn.tolist()}) > 1


@pytest.mark.parametrize("labeled", [0, 6])
def test_with_one_kind_alone_everything_is_labelled_with_probability_one_half(labeled: int) -> None:
    network = trained(some_labeled(6, labeled), epochs=1)
    assert network(noise(5)).tolist() == [[0.0]] * 5


# --- the strategy


def pool_of(count: int) -> Pool:
    volume, nobody = np.arange(count), np.zeros(count, bool)
    items = ItemTable([f"image_{i}" for i in range(count)], volume, np.full(count, WHOLE))
    return Pool(items, nobody, nobody, volume, volume, np.full(count, WHOLE))


def test_the_score_is_one_minus_the_probability_of_being_labelled() -> None:
    logits = torch.tensor([[0.0], [2.0], [-3.0], [-21.0], [-20.0], [500.0]])
    signal = strategy.VAAL_UNLABELED
    values = {signal.name: signal.reduce(logits).numpy()}
    found = strategy.Vaal().ask(pool_of(6), values, 6, seed=0, round_no=1)
    # The surest stay apart, though float32 would round both to 1.
    assert found.rows.tolist() == [3, 4, 2, 0, 1, 5]
    np.testing.assert_allclose(found.scores, 1 - expit(logits[found.rows, 0].double().numpy()), atol=1e-15)


def test_where_nothing_is_labelled_chance_decides() -> None:
    values = {strategy.VAAL_UNLABELED.name: np.zeros(8, np.float32)}
    answers = [strategy.Vaal().ask(pool_of(8), values, 3, seed=0, round_no=n) for n in range(8)]
    assert len({tuple(answer.rows.tolist()) for answer in answers}) > 1
    assert all((answer.scores == 0.5).all() for answer in answers)
    assert all("drawn at random" in why for answer in answers for why in answer.why)
