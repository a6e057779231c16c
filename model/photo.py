"""The networks for photos: bias-free residual U-Nets made for speed.

`FineNetwork` has 1,308,736 parameters and takes 72 kMAC a pixel; `PhotoNetwork`, which came before it, has 1,937,184
and takes 69, fewer of them at the finest level. Bias-free networks generalise over noise levels (Mohan et al. 2020);
everything at full resolution is kept out of the way by a pixel-unshuffle stem, as in FFDNet (Zhang et al. 2018). As in
FFDNet, the network is told how noisy the photo is; here of luminance and chrominance apart, at each resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fused import add_conv_, can_fuse, conv_relu

RESIDUAL_GAIN = 0.1  # each block starts close to the identity, which lets 1e-3 train from the first step


class PhotoNetwork(nn.Module):
    """Maps a noisy sRGB photo in [0, 1] to its estimate of the clean one (not clipped).

    Input and output are float tensors of shape (B, 3, H, W); H and W must be multiples of `multiple_px`. Beside them it
    takes the noise level, (B, 2): standard deviation of luminance and of chrominance (see `model.estimate`), in the
    photo's own unit. The network computes the noise, and subtracts it from its input in the input's precision. Scaling
    photo and level together scales the result.
    """

    multiple_px = 8
    halo_px = 64  # what surrounds a rectangle of whole cells at more than 62 pixels does not change it
    widths = (48, 96, 192)  # channels at the three levels, the finest first
    blocks = (1, 1, 2, 1, 1)  # at the three levels on the way down, and at two on the way up

    def __init__(self) -> None:
        super().__init__()
        full, half, quarter = self.widths
        down_full, down_half, bottom, up_half, up_full = self.blocks
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), _conv(3 * 4, full))
        self.level = nn.ModuleList([_level(width) for width in self.widths])
        self.encoder = nn.ModuleList([self._stage(full, down_full), self._stage(half, down_half)])
        self.down = nn.ModuleList([_down(full, half), _down(half, quarter)])
        self.bottleneck = self._stage(quarter, bottom)
        self.up = nn.ModuleList([_up(quarter, half), _up(half, full)])
        self.decoder = nn.ModuleList([self._stage(half, up_half), self._stage(full, up_full)])
        self.head = ConvShuffle(_conv(full, 3 * 4, gain=RESIDUAL_GAIN))

    def forward(self, noisy_BCHW: Tensor, level_B2: Tensor) -> Tensor:
        at_full, at_half, at_quarter = (tell(level_B2)[:, :, None, None] for tell in self.level)
        features: Tensor = self.stem(noisy_BCHW).add_(at_full)
        skips = []
        for block, down, told in zip(self.encoder, self.down, (at_half, at_quarter), strict=True):
            features = block(features)
            skips.append(features)
            features = down(features).add_(told)
        features = self.bottleneck(features)
        for up, block, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            features = block(up(features).add_(skip))
        noise_BCHW: Tensor = self.head(features)
        denoised_BCHW: Tensor = noisy_BCHW - noise_BCHW.to(noisy_BCHW.dtype)
        return denoised_BCHW

    def _stage(self, width: int, count: int) -> nn.Module:
        blocks = [self._block(width) for _ in range(count)]
        return blocks[0] if count == 1 else nn.Sequential(*blocks)

    def _block(self, width: int) -> "ResidualBlock":
        return ResidualBlock(width)


class FineNetwork(PhotoNetwork):
    """The same with more channels at the finest level, where one of 48 errs most, and fewer at the coarsest.

    It has nearly twice as many blocks of half the size, with a ReLU for each 3 × 3 convolution. They leak, as half of
    those at the coarsest level of the other one have died.
    """

    widths = (64, 96, 128)
    blocks = (1, 2, 4, 2, 2)

    def _block(self, width: int) -> "ResidualBlock":
        return ResidualBlock(width, leak=0.01, second_px=1)


class ResidualBlock(nn.Module):
    """Two convolutions around a ReLU, added to their input (He et al. 2016), without biases or normalisation.

    Args:
        width: channels.
        leak: slope of the ReLU below zero.
        second_px: side of the second one's kernel; that of the first is 3.
    """

    def __init__(self, width: int, *, leak: float = 0, second_px: int = 3) -> None:
        super().__init__()
        self.leak = leak
        self.relu = nn.LeakyReLU(leak, inplace=True) if leak else nn.ReLU(inplace=True)
        self.first = _conv(width, width)
        self.second = _conv(width, width, side_px=second_px, gain=RESIDUAL_GAIN)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """The sum. Where no gradient is asked for it may take the place of its argument."""
        if can_fuse(features_BCHW):
            return add_conv_(features_BCHW, conv_relu(features_BCHW, self.first, leak=self.leak), self.second)
        # In place on the convolutions' own results, which saves a tenth of the time and changes no bit of it.
        residual_BCHW: Tensor = self.second(self.relu(self.first(features_BCHW)))
        return residual_BCHW.add_(features_BCHW)


class ConvShuffle(nn.Sequential):
    """A convolution of which every four channels become 2 × 2 pixels of one, by `nn.PixelShuffle`'s rule.

    Where no gradient is asked for, the channels are computed in another order, so that those of neighbours lie side by
    side: moving them takes a third of the time, and no bit of the result is another. Its gradient would take longer.
    """

    def forward(self, features_BCHW: Tensor) -> Tensor:
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        if torch.is_grad_enabled():
            return F.pixel_shuffle(conv(features_BCHW), 2)
        # The kernels of the 2 × 2 pixels one after the other, each with all of its channels.
        kernels_4OIHW = conv.weight.reshape(-1, 4, *conv.weight.shape[1:]).transpose(0, 1)
        cells_BCHW = F.conv2d(features_BCHW, kernels_4OIHW.flatten(0, 1), padding=conv.kernel_size[0] // 2)
        batch, channels, height, width = cells_BCHW.shape
        rows_BHWYC = cells_BCHW.permute(0, 2, 3, 1).reshape(batch, height, width, 2, channels // 2)  # C: two pixels
        photo_BHWC = rows_BHWYC.transpose(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4)
        return photo_BHWC.permute(0, 3, 1, 2)


def _conv(before: int, after: int, *, side_px: int = 3, gain: float = 1.0) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel_size=side_px, padding=side_px // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    with torch.no_grad():
        conv.weight.mul_(gain)
    return conv


def _level(width: int) -> nn.Linear:
    """A constant for each channel. Zero at first: until it is trained the network is blind."""
    level = nn.Linear(2, width, bias=False)
    nn.init.zeros_(level.weight)
    return level


def _down(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=2, stride=2, bias=False)


def _up(before: int, after: int) -> ConvShuffle:
    return ConvShuffle(nn.Conv2d(before, 4 * after, kernel_size=1, bias=False))
