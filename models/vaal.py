"""VAAL: a variational autoencoder, and a discriminator of labelled and unlabelled in its latent space."""

import torch
from torch import Tensor, nn

from models.representation import Representation

_SIZE = 64
_LATENT = 32
_WIDTHS = (16, 32, 64, 64)
_GROUPS = 8
_DISCRIMINATOR = 128


class Vaal(nn.Module):
    """(B, 1, 64, 64) -> (B, 1): the logit of being labelled, by the mean of the latent distribution.

    Groups of channels are normalised within an item: by the statistics of a batch, whoever is labelled could be told from
    the batch it came in.

    Source: Sinha et al. 2019.
    """

    def __init__(self) -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        for below, width in zip([1, *_WIDTHS[:-1]], _WIDTHS, strict=True):
            encoder += [nn.Conv2d(below, width, 3, 2, 1), nn.GroupNorm(_GROUPS, width), nn.ReLU()]
        corner = _SIZE // 2 ** len(_WIDTHS)
        inner = _WIDTHS[-1] * corner**2
        self.encoder = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(inner, 2 * _LATENT))
        decoder: list[nn.Module] = [nn.Linear(_LATENT, inner), nn.Unflatten(1, (_WIDTHS[-1], corner, corner))]
        for width, above in zip(_WIDTHS[::-1], [*_WIDTHS[-2::-1], 1], strict=True):
            decoder += [nn.GroupNorm(_GROUPS, width), nn.ReLU(), nn.ConvTranspose2d(width, above, 2, 2)]
        self.decoder = nn.Sequential(*decoder)
        self.discriminator = nn.Sequential(
            nn.Linear(_LATENT, _DISCRIMINATOR), nn.ReLU(),
            nn.Linear(_DISCRIMINATOR, _DISCRIMINATOR), nn.ReLU(),
            nn.Linear(_DISCRIMINATOR, 1),
        )  # fmt: skip

    def encode(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, (B, 32) each, of the latent distribution."""
        mean, log_variance = self.encoder(data).float().chunk(2, 1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """(B, 32) -> (B, 1, 64, 64)."""
        image: Tensor = self.decoder(latent)
        return image

    def discriminate(self, latent: Tensor) -> Tensor:
        """(B, 32) -> (B, 1) the logit of being labelled."""
        logit: Tensor = self.discriminator(latent)
        return logit.float()

    def say_nothing(self) -> None:
        """Let every item be labelled with probability 1/2: where there are no two kinds to tell apart."""
        last = self.discriminator[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()

    def forward(self, data: Tensor) -> Tensor:
        """The logit of being labelled."""
        return self.discriminate(self.encode(data)[0])


VAAL = Representation("vaal", (_SIZE, _SIZE), 1, uses_labels=True, build=Vaal)
