"""The processes of one training: this one, and what it does together with the others."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `count` that train one network together; with a count above 1 the process group is there.

    Attributes:
        device: where this process computes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process validates, reports, and keeps what was trained."""
        return self.rank == 0

    def distributed(self, network: nn.Module, *, leaves_out: bool = False) -> nn.Module:
        """The network, whose gradients are averaged over the processes in every backward pass.

        Args:
            leaves_out: some of its layers get no gradient.
        """
        if self.count == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=leaves_out)

    def prepared(self, network: nn.Module) -> nn.Module:
        """Batch normalisation over the items of all processes, where it can be: on CUDA."""
        if self.count == 1 or self.device.type != "cuda":
            return network
        found: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return found

    def gathered(self, part: Tensor) -> Tensor:
        """(B, ...) of every process, one after another, on each of them; gradients flow to this process's own only."""
        if self.count == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.count)]
        torch.distributed.all_gather(parts, part.detach().contiguous())
        parts[self.rank] = part
        return torch.cat(parts)

    def average_gradients(self, modules: Iterable[nn.Module]) -> None:
        """Of modules that are not `distributed`."""
        if self.count == 1:
            return
        for module in modules:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.count

    def agreed(self, value: bool) -> bool:
        """What the first process says."""
        if self.count == 1:
            return value
        said = torch.tensor([value], dtype=torch.uint8, device=self.device)
        torch.distributed.broadcast(said, 0)
        return bool(said.item())
