"""Training of the infoVAE: slices that come back from their codes, and codes that are spread like the prior."""

import math

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from models.info_vae import InfoVAE
from models.representation import Representation
from trainers.representation import Report, RepresentationSettings, Slices
from trainers.steps import descend, weights_of

BATCH = 32
LEARNING_RATE = 5e-5
SIGMA = 1.0
"""All three: BSQ paper, sections 2.3 and 2.5."""

_STEPS, _LEAST_EPOCHS = 2000, 5
"""The paper does not tell how long; a small pool is passed over until there were so many steps, a large one so often."""


def default_epochs(slices: int) -> int:
    """How often so many slices are passed over where nobody says."""
    return max(_LEAST_EPOCHS, math.ceil(_STEPS / math.ceil(slices / BATCH)))


def mmd(q: Tensor, p: Tensor, sigma: float = SIGMA) -> Tensor:
    """() squared maximum mean discrepancy of samples q (n, D) and p (m, D), at least 0, 0 where they are the same.

    mean k(q, q') + mean k(p, p') - 2 mean k(q, p), each over all pairs, with k(z, z') = exp(-||z - z'||^2 / (2 sigma^2 D))
    (BSQ paper, eq. 6). The paper prints the norm without its square, which is no Gaussian. The division by D is not printed;
    infoVAE's published code has it too (twice). Two draws of a standard normal in 200 dimensions are 20 apart, and
    exp(-20^2 / 2) is 0 in single precision: without it there would be nothing to learn from.
    """

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        # From differences: |a|^2 + |b|^2 - 2ab loses all digits of close pairs.
        squared = (a[:, None] - b).square().mean(2)
        return torch.exp(-squared / (2 * sigma**2)).mean()

    return similarity(q, q) + similarity(p, p) - 2 * similarity(q, p)


def loss(network: InfoVAE, slices: Tensor) -> Tensor:
    """() L_AE + L_MMD of slices (B, 1, h, w): squared error, mean over pixels, and MMD of codes and prior, both drawn once.

    Only convolutions and matrix products run in half precision on CUDA.
    """
    with torch.autocast(slices.device.type, enabled=slices.device.type == "cuda"):
        mean, log_variance = network.posterior(slices)
    mean, log_variance = mean.float(), log_variance.float()
    codes = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    with torch.autocast(slices.device.type, enabled=slices.device.type == "cuda"):
        back = network.decode(codes)
    return functional.mse_loss(back.float(), slices) + mmd(codes, torch.randn_like(codes))


def train(
    learner: Representation, slices: Slices, settings: RepresentationSettings, device: torch.device, report: Report
) -> dict[str, Tensor]:
    """Train an infoVAE on all slices, labelled or not: Adam, learning rate 5e-5, batches of 32 (BSQ paper, section 2.5).

    Args:
        report: called after each step with epoch, epochs, fraction, and the mean loss of the steps of this epoch so far.

    Returns:
        The weights, on the CPU.
    """
    epochs = settings.epochs or default_epochs(len(slices))
    steps = math.ceil(len(slices) / BATCH)
    order = torch.Generator().manual_seed(settings.seed)
    network = learner.network(settings.seed).to(device).train()
    assert isinstance(network, InfoVAE)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    # Codes and prior are drawn from torch's own generator: seeded here, and left as it was.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        tqdm(total=epochs * steps, desc=f"train {learner.name}", unit="step", disable=None) as bar,
    ):
        torch.manual_seed(settings.seed)
        for epoch in range(1, epochs + 1):
            total = 0.0
            for step, rows in enumerate(torch.randperm(len(slices), generator=order).split(BATCH), 1):
                value = loss(network, slices.data[rows].to(device, non_blocking=True))
                descend(optimiser, scaler, value)
                total += float(value.detach())
                bar.update()
                done = (epoch - 1) * steps + step
                report(epoch=epoch, epochs=epochs, fraction=done / (epochs * steps), loss=total / step)
    return weights_of(network)
