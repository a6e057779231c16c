"""A photo that is to be denoised, and its tiles as jobs: what the network is shown, and what becomes of its answer."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.device import Precision, thread_pools
from model.estimate import NoiseEstimate, estimate_noise
from model.grain import keep_luminance
from model.impulses import REACH_PX, Impulses, fill_impulses
from model.restraint import hold_back
from model.strength import calls_for_network
from model.tiling import Rectangle, Tile
from model.weights import Part

# What white is in each dtype. Floats are in 8-bit levels, as sigma is.
PEAKS = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 255.0}
FILE_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
# In three equal channels luminance has √3 times the noise. Of gray photos, where no colour tells texture from noise,
# the estimate errs upward: told all of it, one of 41 photos loses 2 dB. So the mean gains as much, and that one loses
# 0.8.
GRAY_GAIN = 1.25


class Windowed(Protocol):
    """A photo that gives the noisy pixels of a window, rows by columns, and takes the clean ones: each pixel once."""

    shape: tuple[int, ...]
    ndim: int
    dtype: np.dtype[Any]

    @property
    def size(self) -> int: ...

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[Any]: ...  # Any: uint8 or uint16

    def __setitem__(self, window: tuple[slice, slice], clean: NDArray[Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """What jobs have in common that can share a batch: the network, the size that it is given, and how it computes."""

    height_px: int
    width_px: int
    dtype: np.dtype[Any]
    is_gray: bool
    part: Part
    precision: Precision

    @property
    def is_shareable(self) -> bool:
        """Whether a job's result is the same whatever else is in its batch.

        In float32 it is not, from the sixth digit on: oneDNN chooses another kernel for another size of the batch.
        """
        return self.precision is not Precision.FLOAT32


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A photo, what is wanted of it, and where the result is written to.

    Attributes:
        noisy, clean: where the pixels are read from, and written to.
        strength: share of the network's correction that is applied; 0 where it is not asked at all.
        level: what the network is told: the sigma of luminance and of chrominance, in 8-bit levels.
        is_white: whether it is the network for white noise, where the weights have one.
        keeps_grain: see `model.grain`.
        impulses: salt and pepper, filled before the network sees a tile. That is done whole at any strength but 0, as
            half an impulse is one, and where grain is kept, too: it is none. Where the photo has no other noise, what
            was not hit is as good as can be and stays as it is, whatever the strength.
        only_channel, is_neutral: see `NoiseEstimate`: all of its tiles are shown as gray, or change as gray ones do.
    """

    noisy: NDArray[Any] | Windowed
    strength: float
    level: tuple[float, float]
    keeps_grain: bool
    clean: NDArray[Any] | Windowed
    is_white: bool = False
    impulses: Impulses | None = None
    only_channel: int | None = None
    is_neutral: bool = False

    @classmethod
    def of(
        cls,
        noisy: NDArray[Any],
        strength: float,
        noise: NoiseEstimate | None,
        *,
        dtypes: tuple[np.dtype[Any], ...],
        keeps_grain: bool = False,
    ) -> "Request":
        _check(noisy, strength, dtypes)
        with thread_pools().limit(limits=1, user_api="blas"):  # see `use_threads`
            noise = noise or estimate_noise(noisy)
        request = cls._with(noisy, strength, noise, keeps_grain, np.empty_like(noisy))
        return dataclasses.replace(request, clean=noisy.copy()) if request.is_unchanged else request

    @classmethod
    def by_windows(
        cls,
        photo: Windowed,
        strength: float,
        noise: NoiseEstimate,
        *,
        dtypes: tuple[np.dtype[Any], ...],
        keeps_grain: bool = False,
    ) -> "Request":
        _check(photo, strength, dtypes)
        return cls._with(photo, strength, noise, keeps_grain, photo)

    @classmethod
    def _with(
        cls,
        noisy: NDArray[Any] | Windowed,
        strength: float,
        noise: NoiseEstimate,
        keeps_grain: bool,
        clean: NDArray[Any] | Windowed,
    ) -> "Request":
        impulses = noise.impulses if strength > 0 else None
        if impulses is not None and not calls_for_network(noise, keeps_grain=keeps_grain, is_gray=noisy.ndim == 2):
            strength = 0.0
        is_gray = noisy.ndim == 2 or noise.only_channel is not None
        return cls(
            noisy=noisy,
            strength=strength,
            level=(noise.luma_sigma * (GRAY_GAIN if is_gray else 1), noise.chroma_sigma),
            keeps_grain=keeps_grain,
            clean=clean,
            is_white=noise.is_white,
            impulses=impulses,
            only_channel=noise.only_channel,
            is_neutral=noise.is_neutral,
        )

    @property
    def is_unchanged(self) -> bool:
        return self.impulses is None and (self.strength == 0 or (self.keeps_grain and self.noisy.ndim == 2))

    def read(self, area: Rectangle) -> NDArray[Any]:
        """The pixels there, of which impulses are filled. Any: the photo's dtype."""
        if self.impulses is None:
            return self.noisy[area.slices]
        height_px, width_px = self.noisy.shape[:2]
        around = Rectangle(
            max(0, area.top - REACH_PX),
            max(0, area.left - REACH_PX),
            min(height_px, area.bottom + REACH_PX),
            min(width_px, area.right + REACH_PX),
        )
        seen_HWC = self.noisy[around.slices]
        seen_BHWC = seen_HWC.reshape(1, around.height_px, around.width_px, -1)
        filled_BHWC = fill_impulses(seen_BHWC, self.impulses, peak=int(PEAKS[self.noisy.dtype]))
        filled_HWC: NDArray[Any] = filled_BHWC.reshape(seen_HWC.shape)[area.within(around)]
        return filled_HWC


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One tile of one request."""

    request: Request
    tile: Tile
    kind: Kind

    @property
    def core_shape(self) -> tuple[int, int]:
        return self.tile.core.height_px, self.tile.core.width_px

    def read_into(self, padded_HWC: NDArray[Any]) -> None:
        """Copy what the tile reads, and pad it at the bottom and the right."""
        height_px, width_px = self.tile.read.height_px, self.tile.read.width_px
        padded_HWC[:height_px, :width_px] = self.request.read(self.tile.read)
        _mirror(padded_HWC, height_px)
        _mirror(padded_HWC.swapaxes(0, 1), width_px)

    def write(self, noisy_CHW: Tensor, clean_CHW: Tensor) -> None:
        """Blend the core by the photo's strength and write it into the clean photo, in the photo's levels."""
        rows, columns = self.tile.core.within(self.tile.read)
        clean_CHW, noisy_CHW = clean_CHW[:, rows, columns], noisy_CHW[:, rows, columns]
        if not math.isfinite(float(clean_CHW.sum())):  # NaN and infinity survive a sum, which is the cheapest test
            raise FloatingPointError(
                f"the network's output for a photo of shape {self.request.noisy.shape} is not finite within "
                f"{self.tile.core}: check the weights, or try precision float32"
            )
        is_gray, only = self.request.noisy.ndim == 2, self.request.only_channel
        if only is not None:
            gray_HW = clean_CHW.mean(dim=0)
            clean_CHW = noisy_CHW.clone()
            if not self.request.keeps_grain:
                clean_CHW[only] = gray_HW
        elif is_gray:
            clean_CHW = ((clean_CHW[0] + clean_CHW[1] + clean_CHW[2]) / 3).expand_as(clean_CHW)
        elif self.request.is_neutral:
            clean_CHW = noisy_CHW + (clean_CHW - noisy_CHW).mean(dim=0)
        clean_CHW = hold_back(noisy_CHW, clean_CHW, max(self.request.level))
        if self.request.keeps_grain and only is None:
            clean_CHW = keep_luminance(noisy_CHW, clean_CHW)
        if is_gray:
            clean, noisy = clean_CHW[0], noisy_CHW[0]
        else:
            clean, noisy = clean_CHW.permute(1, 2, 0), noisy_CHW.permute(1, 2, 0)
        blended = torch.lerp(noisy, clean, self.request.strength)
        self.request.clean[self.tile.core.slices] = _to_levels(blended, self.request.noisy.dtype)


def _check(noisy: NDArray[Any] | Windowed, strength: float, dtypes: tuple[np.dtype[Any], ...]) -> None:
    is_photo = noisy.ndim == 2 or (noisy.ndim == 3 and noisy.shape[2] == 3)
    if not is_photo or noisy.dtype not in dtypes or noisy.size == 0:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(
            f"cannot denoise an array of shape {noisy.shape} and dtype {noisy.dtype}: expected (H, W, 3) or (H, W) "
            f"of {expected}, at least one pixel"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}: expected 0 to 1")


def _mirror(padded: NDArray[Any], filled: int) -> None:
    """Fill what follows the first `filled` rows by their reflection, or where they are too few by the last of them."""
    missing = padded.shape[0] - filled
    if missing < filled:
        padded[filled:] = padded[filled - 1 - missing : filled - 1][::-1]
    else:
        padded[filled:] = padded[filled - 1]


def _to_levels(photo: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """From [0, 1] to the levels of the dtype: rounded and clipped, unless that is a float. Changes its argument."""
    levels = photo.mul_(PEAKS[dtype])
    if dtype in FILE_DTYPES:
        levels = levels.round_().clamp_(0, PEAKS[dtype]).to(torch.uint8 if dtype == np.uint8 else torch.uint16)
    return levels.cpu().numpy()
