"""A training by several processes: what is the same as with one, and what a lost process leaves."""

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

import models
from loop.errors import BadInput, NextSliceError
from models import ModelSpec
from trainers import distributed, engine
from trainers.batches import batches
from trainers.data import Data, Loaded
from trainers.settings import Settings

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=2, steps_per_epoch=3, batch_size=4, learning_rate=3e-3, seed=1)
pytestmark = pytest.mark.usefixtures("one_thread")


def boxes(n: int, *, seed: int = 0) -> Loaded:
    generator = torch.Generator().manual_seed(seed)
    target = torch.zeros(n, 16, 16, dtype=torch.uint8)
    target[:, 4:10, 5:12] = 1
    return Loaded(torch.randn(n, 1, 16, 16, generator=generator) * 0.3 + 2 * target[:, None], target)


DATA = Data([boxes(6)], [boxes(3, seed=1)])


def plain(channels_out: int) -> nn.Module:
    """Neither batch statistics nor dropout: those are each process's own on the CPU."""
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, channels_out, 3, padding=1))


def spec_of(build: Any = None) -> ModelSpec:
    spec = models.get("unet2d", labels=("box",))
    return replace(spec, build=build, feature_layer="0") if build else spec


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_ranks_cut_together_is_what_one_cuts_alone(ranks: int) -> None:
    alone = batches(spec_of(), DATA.training, 8, 3)
    together = [batches(spec_of(), DATA.training, 8, 3, rank=rank, ranks=ranks) for rank in range(ranks)]
    for _ in range(3):
        whole = next(alone).on(CPU)
        parts = zip(*(next(stream).on(CPU) for stream in together), strict=True)
        for one, shares in zip(whole, parts, strict=True):
            assert torch.equal(one, torch.cat(shares))


def test_two_processes_make_the_weights_that_one_makes() -> None:
    reports = list[dict[str, Any]]()
    alone = engine.train(spec_of(plain), DATA, SETTINGS, device=CPU)
    both = distributed.train(
        spec_of(plain), DATA, SETTINGS, devices=[CPU, CPU], report=lambda **progress: reports.append(progress)
    )
    near(both.weights, alone.weights, 1e-5)
    assert both.metrics["dice"] == pytest.approx(alone.metrics["dice"], abs=1e-3)
    assert both.metrics.keys() == alone.metrics.keys()
    assert [entry["loss"] for entry in both.curve] == pytest.approx([entry["loss"] for entry in alone.curve], rel=1e-5)
    assert [report["fraction"] for report in reports] == [step / 6 for step in range(1, 7)]


def near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=tolerance, rtol=0)


def test_heads_train_along_and_the_start_is_used() -> None:
    warnings = list[str]()
    start = engine.train(spec_of(), DATA, SETTINGS, device=CPU, heads=["learning_loss"]).weights
    found = distributed.train(
        spec_of(),
        DATA,
        replace(SETTINGS, epochs=1, patience=1, parts=2),
        devices=[CPU] * 3,
        start=start,
        heads=["learning_loss"],
        warn=warnings.append,
    )
    assert found.weights.keys() == start.keys()
    assert not any(torch.equal(found.weights[key], start[key]) for key in start if key.endswith("conv.weight"))
    assert [text for text in warnings if "2 of 3 devices" in text] == warnings
    assert 0 <= found.metrics["dice"] <= 1


class Doomed(nn.Module):
    """Kills the second process of a training, or runs out of memory there, at the first step."""

    def __init__(self, channels_out: int, *, end: str) -> None:
        super().__init__()
        self.conv, self.end = nn.Conv2d(1, channels_out, 1), end

    def forward(self, data: Tensor) -> Tensor:
        second = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        if second and self.training and self.end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if second and self.training and self.end == "memory" and len(data) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        found: Tensor = self.conv(data)
        return found


def test_a_killed_process_ends_the_training_and_the_other_processes() -> None:
    forkserver.ensure_running()
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(NextSliceError, match="Process 2 of the training's 2 ended with exit code -9"):
        distributed.train(spec_of(partial(Doomed, end="kill")), DATA, SETTINGS, devices=[CPU, CPU])
    assert not set(psutil.Process().children(recursive=True)) - before


def test_too_little_memory_in_one_process_starts_all_again_with_smaller_parts() -> None:
    warnings = list[str]()
    build = partial(Doomed, end="memory")
    found = distributed.train(spec_of(build), DATA, SETTINGS, devices=[CPU, CPU], warn=warnings.append)
    assert len(warnings) == 1
    assert "starts again with each device's share in 2 parts" in warnings[0]
    near(found.weights, engine.train(spec_of(build), DATA, SETTINGS, device=CPU).weights, 5e-3)


def test_what_cannot_be_trained_is_said_as_with_one_process() -> None:
    with pytest.raises(BadInput, match="do not fit the model 'unet2d'"):
        distributed.train(spec_of(plain), DATA, SETTINGS, devices=[CPU, CPU], start={"a": torch.zeros(1)})


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("cpu", "1", 1), ("cpu", "auto", 1), ("cpu", "2", 2), ("cuda", "1", 1), ("cuda:3", "auto", 1)],
)
def test_devices_of_a_training(device: str, gpus: str, expected: int) -> None:
    assert distributed.devices_for(torch.device(device), gpus) == [torch.device(device)] * expected


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda:0", "2", "device cuda:0 is one GPU, and gpus asks for 2"),
        ("cuda", "999", "gpus asks for 999, this machine"),
    ],
)
def test_devices_that_are_not_there(device: str, gpus: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        distributed.devices_for(torch.device(device), gpus)
