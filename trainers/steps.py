"""What every training loop here does at a step, and at its end."""

import torch
from torch import Tensor, nn


def descend(optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor) -> None:
    """One optimiser step down the loss, scaled for half precision where the scaler is on."""
    optimiser.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's weights on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
