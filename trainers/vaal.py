"""Adversarial training of VAAL: the encoder hides from the discriminator who is labelled, as far as images look alike."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from models.representation import Representation
from models.vaal import Vaal
from trainers.representation import Report, RepresentationSettings, Slices
from trainers.steps import descend, weights_of

_EPOCHS = 50
_MOST_STEPS = 2000
"""Of a large pool 50 epochs are far more than telling two kinds apart takes, and it is trained with every round."""

_BATCH = 32
_LEARNING_RATE = 5e-4


def train(
    learner: Representation, slices: Slices, settings: RepresentationSettings, device: torch.device, report: Report
) -> dict[str, Tensor]:
    """Train autoencoder and discriminator in turn, on as many labelled slices a step as unlabelled ones.

    An epoch is a pass over the unlabelled slices; the labelled ones are passed as often as it takes. By itself it is 50
    epochs, or as many as 2000 steps hold, and one at least. Where all slices are labelled, or none, there is nothing to
    discriminate: nothing is trained, and the network gives every slice the probability 1/2.

    The autoencoder minimises, an image, squared error summed over the pixels + KL divergence from N(0, 1) - log p(labelled) of
    the latent mean, labelled or not; the discriminator cross-entropy with 1 for labelled, 0 for unlabelled.

    Returns:
        The weights; deterministic by the seed on one device.

    Source: Sinha et al. 2019, eq. 1-5.
    """
    network = learner.network(settings.seed)
    assert isinstance(network, Vaal)
    if slices.labeled.all() or not slices.labeled.any():
        network.say_nothing()
    else:
        cuda = device.type == "cuda"
        with (
            torch.random.fork_rng(devices=[device] if cuda else []),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        ):
            torch.manual_seed(settings.seed)
            _optimise(network.to(device).train(), slices, settings, device, report)
    return weights_of(network)


def _optimise(
    network: Vaal, slices: Slices, settings: RepresentationSettings, device: torch.device, report: Report
) -> None:
    generator = torch.Generator().manual_seed(settings.seed)
    rows = [torch.from_numpy(mask).nonzero()[:, 0] for mask in (slices.labeled, ~slices.labeled)]
    orders = [_Shuffled(mine, generator) for mine in rows]
    batch = min(_BATCH, len(rows[1]))
    steps = math.ceil(len(rows[1]) / batch)
    epochs = settings.epochs or _epochs(steps)
    coder = torch.optim.Adam([*network.encoder.parameters(), *network.decoder.parameters()], lr=_LEARNING_RATE)
    judge = torch.optim.Adam(network.discriminator.parameters(), lr=_LEARNING_RATE)
    enabled = device.type == "cuda"
    scalers = [torch.amp.GradScaler(device.type, enabled=enabled) for _ in range(2)]
    # Labelled first, in every batch of both.
    labeled = torch.arange(2 * batch, device=device)[:, None] < batch
    truth, wish = labeled.float(), torch.ones(2 * batch, 1, device=device)
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for step in range(steps):
            data = slices.data[torch.cat([order.next(batch) for order in orders])].to(device)
            with torch.autocast(device.type, enabled=enabled):
                mean, log_variance = network.encode(data)
                latent = mean + torch.randn_like(mean) * (log_variance / 2).exp()
                hidden = functional.binary_cross_entropy_with_logits(network.discriminate(mean), wish)
                loss = _autoencoding(network.decode(latent).float(), data, mean, log_variance)
                loss = loss + hidden / data[0].numel()
            descend(coder, scalers[0], loss)
            with torch.autocast(device.type, enabled=enabled):
                told = network.discriminate(mean.detach())
                judged = functional.binary_cross_entropy_with_logits(told, truth)
            descend(judge, scalers[1], judged)
            total += loss.detach()
            report(epoch=epoch, epochs=epochs, fraction=(epoch * steps + step + 1) / (epochs * steps))
        report(epoch=epoch + 1, epochs=epochs, fraction=(epoch + 1) / epochs, loss=float(total) / steps)


def _epochs(steps: int) -> int:
    """How many of so many steps, where nobody says."""
    return max(1, min(_EPOCHS, _MOST_STEPS // steps))


def _autoencoding(decoded: Tensor, data: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Squared error + KL divergence from N(0, 1), both a pixel: the negative evidence lower bound (eq. 1)."""
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
    return functional.mse_loss(decoded, data) + divergence / data[0].numel()


class _Shuffled:
    """Rows in one random order after another, without end."""

    def __init__(self, rows: Tensor, generator: torch.Generator) -> None:
        self._rows, self._generator, self._left = rows, generator, rows[:0]

    def next(self, count: int) -> Tensor:
        """The next rows (count,)."""
        while len(self._left) < count:
            order = torch.randperm(len(self._rows), generator=self._generator)
            self._left = torch.cat([self._left, self._rows[order]])
        found, self._left = self._left[:count], self._left[count:]
        return found
