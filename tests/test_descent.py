"""What gives way in a training: memory, the compiler, patience."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from loop.errors import BadInput
from models import ModelSpec
from models.weights import load_into
from trainers.data import Data, Loaded
from trainers.descent import OutOfMemory, is_out_of_memory
from trainers.engine import Trained, train
from trainers.precision import Precision
from trainers.settings import Settings

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=2, steps_per_epoch=3, batch_size=4, learning_rate=3e-3, seed=1)
pytestmark = pytest.mark.usefixtures("one_thread")


class Greedy(nn.Module):
    """Raises where more items than `most` come at once, as a device without memory does."""

    def __init__(self, channels_out: int, *, most: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels_out, 3, padding=1)
        self.most, self.error = most, error

    def forward(self, data: Tensor) -> Tensor:
        if self.training and len(data) > self.most:
            raise self.error()
        found: Tensor = self.conv(data)
        return found


def boxes(n: int, size: int = 16, *, seed: int = 0) -> Loaded:
    """(n, 1, size, size) noise with a bright square in it."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.zeros(n, size, size, dtype=torch.uint8)
    target[:, 4:10, 5:12] = 1
    return Loaded(torch.randn(n, 1, size, size, generator=generator) * 0.3 + 2 * target[:, None], target)


DATA = Data([boxes(6)], [boxes(3, seed=1)])


def greedy(most: int, error: Callable[[], Exception]) -> ModelSpec:
    spec = models.get("unet2d", labels=("box",))
    return replace(spec, build=partial(Greedy, most=most, error=error), feature_layer="conv")


def cuda_error() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory.")


def cpu_error() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")


@pytest.mark.parametrize("error", [cuda_error, cpu_error])
@pytest.mark.parametrize(("most", "parts"), [(4, 1), (3, 2), (1, 4)])
def test_the_batch_gives_way_to_memory_and_a_step_still_sees_all_of_it(
    error: Callable[[], Exception], most: int, parts: int
) -> None:
    warnings = list[str]()
    found = train(greedy(most, error), DATA, SETTINGS, device=CPU, warn=warnings.append)
    assert [text for text in warnings if "4 items" in text] == warnings
    assert len(warnings) == {1: 0, 2: 1, 4: 2}[parts]
    if parts > 1:
        assert f"in {parts} parts" in warnings[-1]
    whole = train(greedy(4, error), DATA, SETTINGS, device=CPU)
    asked = train(greedy(4, error), DATA, replace(SETTINGS, parts=parts), device=CPU)
    assert all(torch.equal(found.weights[key], asked.weights[key]) for key in asked.weights)
    # The Dice part of the loss is pooled over a part, not over the batch: nearly the same, not the same.
    for key, value in whole.weights.items():
        torch.testing.assert_close(found.weights[key], value, atol=5e-3, rtol=0)


def test_what_does_not_fit_at_all_says_what_to_do() -> None:
    with pytest.raises(OutOfMemory, match="1 of the batch's items at once: set a smaller patch"):
        train(greedy(0, cuda_error), DATA, SETTINGS, device=CPU)


def test_memory_that_is_really_not_there_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_taken_for_memory() -> None:
    with pytest.raises(ValueError, match="broken network"):
        train(greedy(0, lambda: ValueError("broken network")), DATA, SETTINGS, device=CPU)


def test_the_best_epoch_is_kept_and_patience_ends_the_training() -> None:
    spec, reports = models.get("unet2d", labels=("box",)), list[dict[str, object]]()
    # A rate that destroys what was learned: the best epoch is not the last.
    settings = replace(SETTINGS, epochs=30, steps_per_epoch=2, learning_rate=1.0, patience=3)
    found = train(spec, DATA, settings, device=CPU, report=lambda **progress: reports.append(progress))
    scores = [entry["dice"] for entry in found.curve]
    best = scores.index(max(scores))
    assert len(scores) == best + 1 + 3 < 30
    assert found.metrics["epoch"] == best + 1
    assert found.metrics["dice"] == max(scores)
    assert reports[-1]["fraction"] == 1
    assert reports[-1]["epoch"] == len(scores)
    # The weights are the best epoch's: a training that ends there (on the same way) publishes the same.
    assert measured(spec, found) == pytest.approx(max(scores), abs=1e-6)
    through = train(spec, DATA, replace(settings, patience=0), device=CPU)
    assert len(through.curve) == 30
    assert through.curve[: len(scores)] == found.curve


def measured(spec: ModelSpec, trained: Trained) -> float | None:
    from trainers.validation import validate

    network = spec.network(0)
    load_into(network, trained.weights, spec.name)
    return validate(spec, network, DATA.validation, Precision(CPU, None))[0]


def test_patience_without_validation_says_that_it_has_no_effect() -> None:
    warnings = list[str]()
    spec = models.get("unet2d", labels=("box",))
    found = train(spec, Data(DATA.training, []), replace(SETTINGS, patience=1), device=CPU, warn=warnings.append)
    assert len(found.curve) == SETTINGS.epochs
    assert len(warnings) == 1
    assert "patience has no effect" in warnings[0]


@pytest.fixture
def inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Its settings, so that it compiles anew, and no more than a small network needs."""
    import torch._inductor.config as settings

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with settings.patch({"cpp_cache_precompile_headers": False, "compile_threads": 1}):
        yield settings


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch by torch
def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(inductor: Any) -> None:
    spec, warnings = greedy(4, cuda_error), list[str]()
    with inductor.patch({"cpp.cxx": ("/nowhere/c++",)}):
        found = train(spec, DATA, replace(SETTINGS, compile=True), device=CPU, warn=warnings.append)
    assert len(warnings) == 1
    assert "could not be compiled" in warnings[0]
    plain = train(spec, DATA, SETTINGS, device=CPU)
    assert found.weights.keys() == plain.weights.keys()
    assert all(torch.equal(found.weights[key], plain.weights[key]) for key in plain.weights)


def test_precision_of_a_device() -> None:
    assert Precision.of(CPU, "auto") == Precision.of(CPU, "off") == Precision(CPU, None)
    assert not Precision(CPU, None).scaler().is_enabled()
    with Precision(CPU, torch.bfloat16).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with pytest.raises(BadInput):
        raise OutOfMemory("is a BadInput")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch by torch
@pytest.mark.usefixtures("inductor")
def test_a_compiled_network_learns_the_same_and_keeps_its_names() -> None:
    spec, warnings = greedy(4, cuda_error), list[str]()
    found = train(spec, DATA, replace(SETTINGS, compile=True), device=CPU, warn=warnings.append)
    assert warnings == []
    plain = train(spec, DATA, SETTINGS, device=CPU)
    assert found.weights.keys() == plain.weights.keys()
    for key, value in plain.weights.items():
        torch.testing.assert_close(found.weights[key], value, atol=1e-4, rtol=1e-3)
