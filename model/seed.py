"""The seed network: a U-Net with max-pooling, pixel-shuffle upsampling and concatenated skips (13,361,747 parameters).

The shape follows Ronneberger et al. 2015 (U-Net), with the sub-pixel upsampling of Shi et al. 2016.
"""

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128, 256)
BOTTLENECK_WIDTH = 512
DROPOUT = 0.1


class ExampleDropout(nn.Module):
    """Dropout that depends on the example, and not on those that are in the batch beside it.

    Args:
        number: which layer of its network this is; each has masks of its own.
    """

    seed_B: Tensor  # of the examples that come next

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, features_BCHW: Tensor) -> Tensor:
        if not self.training:
            return features_BCHW
        device = features_BCHW.device
        masks = [
            torch.empty(features_BCHW.shape[1:], device=device).bernoulli_(
                1 - DROPOUT, generator=torch.Generator(device).manual_seed(seed + self.number)
            )
            for seed in self.seed_B.tolist()
        ]
        return features_BCHW * torch.stack(masks).to(features_BCHW.dtype) / (1 - DROPOUT)


def seed_dropout(network: nn.Module, seed_B: Tensor) -> None:
    """Tell a network's dropout, if it has any, which examples come next: an int64 for each."""
    for module in network.modules():
        if isinstance(module, ExampleDropout):
            module.seed_B = seed_B


class SeedNetwork(nn.Module):
    """Maps a noisy sRGB photo in [0, 1] to a clean one in [0, 1].

    Input and output are float tensors of shape (B, 3, H, W); H and W must be multiples of `multiple_px`. 512 × 512 is
    what it was designed for: there the bottleneck is 16 × 16 × 512.
    """

    multiple_px = 32
    halo_px = 256  # what surrounds a rectangle of whole cells at more than 254 pixels does not change it

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS)
        self.encoder = nn.ModuleList(_double_conv(before, after) for before, after in zip(inputs, WIDTHS, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.ModuleList(ExampleDropout(number) for number in range(len(WIDTHS)))
        self.bottleneck = _double_conv(WIDTHS[-1], BOTTLENECK_WIDTH)

        outputs = tuple(reversed(WIDTHS))
        self.up = nn.ModuleList(
            nn.Sequential(_conv(before, 4 * after), nn.ReLU(), nn.PixelShuffle(2))
            for before, after in zip((BOTTLENECK_WIDTH, *outputs), outputs, strict=False)
        )
        at_full_size = WIDTHS[0]
        self.decoder = nn.ModuleList(
            nn.Sequential(_conv(2 * width, width), nn.ReLU())
            if width == at_full_size
            else _double_conv(2 * width, width)
            for width in outputs
        )
        self.head = nn.Conv2d(at_full_size, 3, kernel_size=1)

    def forward(self, noisy_BCHW: Tensor, level_B2: Tensor | None = None) -> Tensor:
        del level_B2  # it is blind
        features = noisy_BCHW
        skips = []
        for stage, dropout in zip(self.encoder, self.dropout, strict=True):
            features = stage(features)
            skips.append(features)
            features = dropout(self.pool(features))
        features = self.bottleneck(features)
        for up, stage, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            features = stage(torch.cat([up(features), skip], dim=1))
        return torch.sigmoid(self.head(features))


def _conv(before: int, after: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel_size=3, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # He et al. 2015, eq. 10
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _double_conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(_conv(before, after), nn.ReLU(), _conv(after, after), nn.ReLU())
