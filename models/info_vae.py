"""The infoVAE: a slice's latent code, and the slice that a code stands for."""

from functools import partial

from torch import Tensor, nn

from models.representation import Representation

LATENTS = 200
"""n_lat (BSQ paper, section 2.5)."""
SIZE = 96
"""Pixels a side (BSQ paper, section 2.5)."""
CHANNELS = (16, 32, 64, 128, 256)
"""Of the five blocks; the paper does not tell its own. Doubled as the sides are halved, from 96 to 3 pixels."""

_LOG_VARIANCE = -4.0
"""Of q(z | x) at first: the decoder learns from codes that are not drowned in their own noise."""


class InfoVAE(nn.Module):
    """q(z | x) = N(mean, diag exp(log_variance)) and the decoder's mean of p(x | z) (Zhao 2017; BSQ paper, section 2.5).

    A block halves (doubles) the side by a convolution (transposed convolution) of 4 x 4 with stride 2, then batch
    normalisation and a leaky ReLU; the last block of the decoder is linear, because what it makes has mean 0 and standard
    deviation 1 over a volume, and no bounds.

    Args:
        size: side of the input in pixels, divisible by 2 ** len(channels).
        channels: of the encoder's blocks; the decoder has them the other way round.
        latents: n_lat.

    Raises:
        ValueError: the size is not divisible.
    """

    def __init__(self, size: int = SIZE, channels: tuple[int, ...] = CHANNELS, latents: int = LATENTS) -> None:
        super().__init__()
        coarsest, rest = divmod(size, 2 ** len(channels))
        if rest or not coarsest:
            raise ValueError(f"size must be divisible by {2 ** len(channels)}, got {size}.")
        shape = (channels[-1], coarsest, coarsest)
        flat = channels[-1] * coarsest**2
        sides = (1, *channels)
        down = [_down(sides[i], sides[i + 1]) for i in range(len(channels))]
        up = [_up(sides[i + 1], sides[i]) for i in reversed(range(1, len(channels)))]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.mean = nn.Linear(flat, latents)
        self.log_variance = nn.Linear(flat, latents)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, _LOG_VARIANCE)
        self.decoder = nn.Sequential(
            nn.Linear(latents, flat), nn.Unflatten(1, shape), nn.LeakyReLU(0.1), *up,
            nn.ConvTranspose2d(channels[0], 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, slices: Tensor) -> Tensor:
        """(B, 1, size, size) -> (B, latents) mean of q(z | x)."""
        mean: Tensor = self.mean(self.encoder(slices))
        return mean

    def posterior(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, size, size) -> (B, latents) mean and log variance of q(z | x)."""
        found = self.encoder(slices)
        return self.mean(found), self.log_variance(found)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, latents) -> (B, 1, size, size)."""
        slices: Tensor = self.decoder(codes)
        return slices


def _down(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1, inplace=True)
    )


def _up(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


def info_vae(size: int = SIZE, channels: tuple[int, ...] = CHANNELS, latents: int = LATENTS) -> Representation:
    """The learner "info_vae": it sees images alone, so one training serves until the images change."""
    return Representation("info_vae", (size, size), latents, False, partial(InfoVAE, size, channels, latents))
