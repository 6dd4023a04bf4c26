"""One optimiser step after another: compiled or not, whole or in parts, alone or with other processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from loop.errors import BadInput
from trainers.heads import HeadsInTraining
from trainers.losses import Outputs, logits_of
from trainers.objectives import OneBranch
from trainers.precision import Precision
from trainers.ranks import Ranks
from trainers.settings import Settings

_WARM_UP = 0.21
"""Share of the steps; 1 / 0.21 is no whole number because OneCycleLR divides by zero where warming up is one step."""


class OutOfMemory(BadInput):
    """There is not enough memory for a step."""


class Descent:
    """AdamW with one cycle of the learning rate, on a network and its auxiliary heads.

    Where memory does not suffice for a batch, the batch is halved, and halved again: gradients of the parts add up, so that
    an optimiser step still sees all of it.

    Args:
        objective: what is descended.
        total: steps that there will be.
        warn: called with a sentence when the batch was halved, or the network could not be compiled.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: OneBranch,
        heads: HeadsInTraining,
        settings: Settings,
        total: int,
        precision: Precision,
        ranks: Ranks,
        warn: Callable[[str], None],
    ) -> None:
        self._heads, self._precision, self._ranks, self._warn = heads, precision, ranks, warn
        self._objective = objective
        self._parts = settings.parts
        self._eager: nn.Module = ranks.distributed(network, leaves_out=objective.leaves_out)
        self._forward: Callable[[Tensor], Outputs] = self._eager
        if settings.compile and objective.modules():
            warn("The network is not compiled: a second decoder watches what its encoder puts out.")
        elif settings.compile:
            self._forward = torch.compile(self._eager)
        trained = nn.ModuleList([network, *objective.modules()])
        groups = [
            {"params": list(trained.parameters()), "lr": settings.learning_rate},
            *heads.parameters(settings.learning_rate),
        ]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, [group["lr"] for group in groups], total_steps=total, pct_start=_WARM_UP
        )
        self._scaler = precision.scaler()

    def step(self, data: Tensor, target: Tensor, trained: float) -> Tensor:
        """One step down the loss of a batch; the loss, without a gradient, on the device.

        Args:
            data: (B, 1, *S). target: (B, *S), class or IGNORED.
            trained: share of the training that is over.

        Raises:
            OutOfMemory: for one item, or (with several processes) for this process's part of the batch.
        """
        loss: Tensor | None = None
        while loss is None:
            self._optimiser.zero_grad(set_to_none=True)
            try:
                loss = self._backward(data, target, trained)
            # A compiler can fail in many ways; what is no fault of its own comes again from the plain network.
            except Exception as error:  # noqa: BLE001
                self._give_way(error, len(data))
        self._ranks.average_gradients([*self._heads.modules.values(), *self._objective.modules()])
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._schedule.step()
        return loss

    def _backward(self, data: Tensor, target: Tensor, trained: float) -> Tensor:
        total = torch.zeros((), device=data.device)
        parts = list(zip(data.chunk(self._parts), target.chunk(self._parts), strict=True))
        for number, (items, truth) in enumerate(parts, 1):
            share = len(items) / len(data)
            with self._together(last=number == len(parts)):
                with self._precision.autocast():
                    outputs = self._forward(items)
                    loss = self._objective(items, outputs, truth, trained)
                    further = self._heads.loss(logits_of(outputs), truth, trained)
                self._scaler.scale(share * (self._ranks.count * loss + further)).backward()
            total += share * loss.detach()
        return total

    def _together(self, *, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once a step, in its last part."""
        distributed = isinstance(self._eager, DistributedDataParallel)
        return nullcontext() if last or not distributed else self._eager.no_sync()

    def _give_way(self, error: Exception, size: int) -> None:
        """Make the next try of the step an easier one, or raise."""
        if is_out_of_memory(error):
            if self._ranks.count > 1 or self._parts >= size:
                raise OutOfMemory(_too_large(size, self._parts)) from None
            self._parts *= 2
            self._warn(
                f"Memory did not suffice for {-(-2 * size // self._parts)} items at once: batches go through the network "
                f"in {self._parts} parts from now on, and a step still sees {size} items."
            )
        elif self._forward is not self._eager:
            self._forward = self._eager
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            self._warn(f"The network could not be compiled and is trained as it is: {type(error).__name__}: {reason}")
        else:
            raise error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of a GPU or of this machine did not suffice."""
    words = ("can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _too_large(size: int, parts: int) -> str:
    return (
        f"Memory does not suffice for {-(-size // parts)} of the batch's items at once: set a smaller patch, a smaller "
        "batch_size, or another device."
    )
