"""The contract of all segmentation models: what strategies look at is there, and what training gets is what it says."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
import strategies
from bench.phantom import LABELS, make_phantom
from infers.dropout import active_dropout, dropout_modules, repeat
from infers.gradients import item_gradients
from loop.catalogue import Found
from loop.config import AppConfig
from loop.rounds import Loop
from loop.signals import TASK
from loop.store import Store
from loop.submitted import Submission
from loop.views import Gradients
from loop.worker import run
from loop.workplace import Workplace
from models import ModelSpec
from models.plans import Plans
from models.preprocess import IGNORED
from trainers.losses import deeply_supervised, partial_dice_ce

pytestmark = pytest.mark.usefixtures("one_thread")
PLANS = Plans.read(Path(__file__).parent / "plans_2d.json")
# The images' first axis leads, so that the order of axes in the plans is none that could be right by chance.
VOLUMES = replace(PLANS, configuration="3d_fullres", axis=0)
NAMES = [*models.names(), "nnunet 3d"]


def spec_of(name: str) -> ModelSpec:
    return models.get(name.split()[0], labels=("a", "b"), plans=VOLUMES if name.endswith("3d") else PLANS)


def network_of(spec: ModelSpec) -> Any:
    """In prediction mode, with running statistics of what goes in."""
    network = spec.network(1).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(20):
            network(inputs_of(spec))
    return network.eval()


def inputs_of(spec: ModelSpec, n: int = 2) -> Tensor:
    size = [times * n for times, n in zip((2, 3, 2), spec.divisors, strict=False)]
    return torch.randn(n, 1, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_a_1x1_convolution_of_what_comes_last(name: str) -> None:
    spec = spec_of(name)
    network, seen = network_of(spec), list[Tensor]()
    head = network.get_submodule(spec.head_layer)
    head.register_forward_hook(lambda layer, args, out: seen.append(args[0]))
    with torch.inference_mode():
        logits = network(data := inputs_of(spec))
        assert set(head.kernel_size) == {1}
        assert logits.shape == (2, 3, *data.shape[2:])
        assert torch.equal(head(seen[0]), logits)
    assert head.in_channels >= 16


def scores(logits: Tensor) -> list[Tensor]:
    return [torch.log_softmax(logits, 1).amax(1).flatten(1).mean(1)]


@pytest.mark.parametrize("layer", ["bottleneck", "decoder"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_autograd_one_item_at_a_time(name: str, layer: Any) -> None:
    spec = spec_of(name)
    network, data = network_of(spec), inputs_of(spec)
    found = item_gradients(spec, network, data, scores, Gradients(layer))
    names = (spec.bottleneck_conv,) if layer == "bottleneck" else spec.decoder_convs
    for row, item in enumerate(data.split(1)):
        network.zero_grad()
        scores(network(item))[0].sum().backward()
        convs = [network.get_submodule(conv) for conv in names]
        tensors = [t for conv in convs for t in ((conv.weight, conv.bias) if layer == "bottleneck" else (conv.weight,))]
        expected = torch.cat([tensor.grad.flatten() for tensor in tensors if tensor is not None])
        assert expected.abs().max() > 0
        torch.testing.assert_close(found[row], expected, atol=2e-5 * float(expected.abs().max()) + 1e-9, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_passes_differ_and_their_prefix_may_run_once(name: str) -> None:
    spec = spec_of(name)
    network, data, kept = network_of(spec), inputs_of(spec), list[list[Tensor]]()
    modules = dropout_modules(spec, network)
    for prefix in (False, True):
        kept.append([])
        with torch.random.fork_rng(devices=[]), active_dropout(modules, 0.3), torch.no_grad():
            torch.manual_seed(2)
            if prefix:
                repeat(network, modules, lambda: network(data), 3, kept[-1].append)
            else:
                kept[-1].extend(network(data) for _ in range(3))
    naive, quick = map(torch.stack, kept)
    assert torch.equal(naive, quick)
    assert naive.var(0).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_a_network_returns_in_training_has_a_weight_each(name: str) -> None:
    spec = spec_of(name)
    network, data = spec.network(0).train(), inputs_of(spec, 3)
    outputs = network(data)
    assert isinstance(outputs, list) == bool(spec.output_weights)
    if spec.output_weights:
        assert [output.shape[:2] for output in outputs] == [(3, 3)] * len(spec.output_weights)
        assert sum(spec.output_weights) == pytest.approx(1)
    target = torch.randint(3, (3, *data.shape[2:]), generator=torch.Generator().manual_seed(0))
    loss = deeply_supervised(outputs, target, spec.output_weights)
    assert (outputs[0] if isinstance(outputs, list) else outputs).shape == (3, 3, *data.shape[2:])
    loss.backward()
    unused = {key for key, value in network.named_parameters() if value.grad is None}
    # nnU-Net gives the coarsest output no weight.
    assert all(key.startswith("decoder.seg_layers.0") for key in unused)


def test_deep_supervision_is_the_weighted_loss_at_each_resolution() -> None:
    generator = torch.Generator().manual_seed(0)
    fine, coarse, unused = (torch.randn(2, 3, n, n, generator=generator) for n in (8, 4, 2))
    target = torch.randint(3, (2, 8, 8), generator=generator).to(torch.uint8)
    target[:, 5] = IGNORED
    loss = deeply_supervised([fine, coarse, unused], target, (0.75, 0.25, 0.0))
    # Of two voxels in a row the nearest to the middle of the coarse one is, by convention, the second.
    expected = 0.75 * partial_dice_ce(fine, target) + 0.25 * partial_dice_ce(coarse, target[:, 1::2, 1::2])
    assert float(loss) == pytest.approx(float(expected))
    assert float(deeply_supervised(fine, target, ())) == float(partial_dice_ce(fine, target))


@pytest.mark.parametrize("name", models.names())
def test_networks_have_the_size_that_the_documentation_says(name: str) -> None:
    pages = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    row = next(line for line in pages.splitlines() if line.startswith(f"| `{name}` |"))
    if not models.is_planned(name):
        network = models.get(name, labels=("a", "b")).network(0)
        assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M" in row


# --- every strategy that looks at the model


@pytest.fixture
def campaign(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Loop, Workplace]]:
    """Two phantom patients, the first annotated, and the model of the parameter."""
    config = AppConfig(
        model=request.param, epochs=1, steps_per_epoch=2, batch_size=2, validation_share=0.0, labels=LABELS, budget=3,
        heads=("deal", "learning_loss"), ensemble=2,
        parameters={"usim_c": {"passes": 2}, "usim_f": {"passes": 2}, "mc_variance": {"passes": 2}, "tta": {"views": 2}},
    )  # fmt: skip
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    loop, labels, found = Loop(store, config), tmp_path / "labels", []
    (labels / "final").mkdir(parents=True)
    for number in range(2):
        phantom = make_phantom(np.random.default_rng(number), setting=0, shape=(32, 32, 8))
        name = f"patient{number}"
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(phantom.label, phantom.affine), labels / "final" / f"{name}.nii.gz")
        found.append(Found(name, f"{name}.nii.gz", "1", (32, 32, 8), (1.0, 1.0, 3.0)))
    loop.catalogue.sync(found, [], 0.0)
    loop.submitted.composed({"patient0": loop.tell("patient0", Submission("", "d", "f", list(range(8)), None, {}))})
    yield loop, Workplace(tmp_path, tmp_path / "state", labels, store.url, config.to_json())
    store.close()


def done(campaign: tuple[Loop, Workplace], kind: str, **request: Any) -> dict[str, Any]:
    loop, workplace = campaign
    job = loop.jobs.queue(kind, "model", request, "asked for")["id"]
    run(workplace, job)
    ended = dict(loop.jobs.get(job))
    assert ended["state"] == "done", ended["message"]
    return ended


def about_the_model() -> Sequence[str]:
    """Strategies whose signals are the task model's."""
    known = {name: strategies.get(name) for name in strategies.names()}
    return [
        name
        for name, strategy in known.items()
        if strategy.needs and all(getattr(need, "model", TASK) == TASK for need in strategy.needs)
    ]


@pytest.mark.parametrize("campaign", models.names(), indirect=True)
def test_every_strategy_works_with_every_model(campaign: tuple[Loop, Workplace]) -> None:
    loop, _ = campaign
    done(campaign, "train")
    names = about_the_model()
    assert len(names) > 20
    swept = done(campaign, "sweep", strategies=names)
    assert swept["warnings"] == ["An ensemble of 5 is asked for; 2 published weights vote."]
    newest = loop.newest_rounds()
    assert {newest[name]["selected_by"] for name in names} == set(names)


def test_modules_are_of_one_name() -> None:
    """A second name of a module would write its weights twice."""
    for name in NAMES:
        network: nn.Module = spec_of(name).network(0)
        tensors = list(network.state_dict(keep_vars=True).values())
        assert len(tensors) == len({id(tensor) for tensor in tensors})
