"""The denoiser: photos in, clean photos out. Owns the device, the precision, the tiles and the fallback on memory.

```python
denoiser = Denoiser.load("photo")
clean = denoiser(noisy)                                  # the same shape and dtype
cleans = denoiser.denoise_many([first, second])          # tiles of several photos in one run of the network
```
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.device import Precision, fastest_precision, find_device, is_out_of_memory, move
from model.estimate import NoiseEstimate
from model.metrics import PEAK
from model.request import FILE_DTYPES, PEAKS, Job, Kind, Request, Windowed
from model.tiling import Rectangle, Tile, padded_px, plan_tiles
from model.weights import Part, Weights, load_weights

logger = logging.getLogger(__name__)

Pixels = TypeVar("Pixels", bound=np.generic)

CPU_BATCH_PX = 256**2
GPU_BATCH_PX = 2048**2
SMALLEST_TILE_PX = 64  # below this the halo is nearly all of the work, and a smaller tile would hardly need less memory


class Denoiser:
    """Removes the noise of photos with one set of weights on one device. Use it from one thread at a time.

    Args:
        weights: the network's tensors and their card.
        device: as torch names it, such as "cpu" or "cuda:1"; "auto" is a GPU where there is one.
        precision: "auto" computes 8-bit photos in the 16-bit type that the hardware is made for, if any: more than
            twice as fast, for 0.01 dB (bfloat16, sigma 5; 0.02 dB on clean photos). All others are computed in
            float32, or it would add steps of its own to the finer ones of the photo.
        tile_px: the largest side of what one tile is responsible for; its halo comes on top.
        batch_px: how many pixels the network is given at once, where there are several tiles of one size; a single
            tile may have more. By default what fills a GPU, or on a CPU what fits its caches: there, batches make
            photos below 128 × 128 up to five times as fast, and are of no use to larger ones.

    Attributes:
        weights, device, precision: what was given, with the device found.

    Raises:
        ValueError: an unknown precision or device, sizes that are not positive, or weights that do not fit.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        device: str = "auto",
        precision: str = Precision.AUTO,
        tile_px: int = 1024,
        batch_px: int | None = None,
    ) -> None:
        if tile_px < 1 or (batch_px is not None and batch_px < 1):
            raise ValueError(f"tile_px ({tile_px}) and batch_px ({batch_px}) must be at least 1")
        if precision not in set(Precision):
            raise ValueError(f"unknown precision {precision!r}: expected one of {', '.join(Precision)}")
        self.weights = weights
        self.device = find_device(device)
        self.precision = Precision(precision)
        self._fastest = fastest_precision(self.device)
        self._networks = {part: move(network, self.device) for part, network in weights.networks().items()}
        self._tile_px = tile_px
        self._batch_px = batch_px or (CPU_BATCH_PX if self.device.type == "cpu" else GPU_BATCH_PX)

    @classmethod
    def load(cls, source: str | Path, *, device: str = "auto", precision: str = Precision.AUTO) -> "Denoiser":
        """A denoiser with the shipped weights of that name, or with those in a file.

        Raises:
            ValueError: neither shipped weights nor a file of that name, or not a weights file.
        """
        return cls(load_weights(source), device=device, precision=precision)

    def __call__(
        self,
        noisy: NDArray[Pixels],
        *,
        strength: float = 1.0,
        noise: NoiseEstimate | None = None,
        keeps_grain: bool = False,
    ) -> NDArray[Pixels]:
        """The clean photo, of the same shape and dtype.

        Args:
            noisy: (H, W, 3) or (H, W) in sRGB, uint8 or uint16; any size. Gray stays gray, also in three channels.
            strength: how much of the noise is removed, from 0 (the photo unchanged, exactly) to 1.
            noise: what the network is told of the photo's noise, and whether it shows colour; None estimates it.
            keeps_grain: take the noise out of the colour alone (see `model.grain`): a gray photo stays unchanged.

        Raises:
            ValueError: not such a photo, or such a strength.
            FloatingPointError: the network returned something that is not a number.
            MemoryError: there is not enough memory even for the smallest tile.
        """
        return self._denoise([self.request(noisy, strength=strength, noise=noise, keeps_grain=keeps_grain)])[0]

    def denoise_many(
        self,
        photos: Sequence[NDArray[Pixels]],
        strengths: Sequence[float] | None = None,
        noises: Sequence[NoiseEstimate | None] | None = None,
    ) -> list[NDArray[Pixels]]:
        """The clean photos, in their order; tiles of one size run together, up to `batch_px`.

        Args and errors as for a single photo. Any error is about the whole call: nothing is returned in part.
        """
        strengths = [1.0] * len(photos) if strengths is None else strengths
        noises = [None] * len(photos) if noises is None else noises
        if not len(photos) == len(strengths) == len(noises):
            raise ValueError(
                f"got {len(photos)} photos, {len(strengths)} strengths and {len(noises)} noises: expected one for each"
            )
        asked = zip(photos, strengths, noises, strict=True)
        return self._denoise([self.request(photo, strength=strength, noise=noise) for photo, strength, noise in asked])

    def denoise_float(
        self, noisy: NDArray[np.float32], *, strength: float = 1.0, noise: NoiseEstimate | None = None
    ) -> NDArray[np.float32]:
        """The clean photo of one that no file can hold, for measurements; neither clipped nor rounded.

        Args:
            noisy: (H, W, 3) or (H, W) float32 in 8-bit levels of sRGB, which may lie outside 0–255.
            strength, noise: as for a photo.
        """
        return self._denoise([Request.of(noisy, strength, noise, dtypes=(np.dtype(np.float32),))])[0]

    def _denoise(self, requests: list[Request]) -> list[NDArray[Any]]:
        for batch in self._plan(requests):
            self.run(batch)
        return [np.asarray(request.clean) for request in requests]

    def _plan(self, requests: list[Request]) -> list[list[Job]]:
        """Jobs of one kind in batches of at most `batch_px`."""
        alike: dict[Kind, list[Job]] = {}
        for request in requests:
            for job in self.jobs(request):
                alike.setdefault(job.kind, []).append(job)
        batches = []
        for kind, jobs in alike.items():
            size = self.batch_size(kind)
            batches += [jobs[start : start + size] for start in range(0, len(jobs), size)]
        return batches

    # What `SharedDenoiser` works with: a request, its jobs, and batches of those of one kind.

    def request(
        self, noisy: NDArray[Any], *, strength: float, noise: NoiseEstimate | None, keeps_grain: bool = False
    ) -> Request:
        """A photo to be denoised: arguments and errors as for a call. Any: uint8 or uint16."""
        return Request.of(noisy, strength, noise, dtypes=FILE_DTYPES, keeps_grain=keeps_grain)

    def request_by_windows(
        self, photo: Windowed, *, strength: float, noise: NoiseEstimate, keeps_grain: bool = False
    ) -> Request:
        """The same for a photo that is nowhere as a whole: its tiles are read from it, and given back to it."""
        return Request.by_windows(photo, strength, noise, dtypes=FILE_DTYPES, keeps_grain=keeps_grain)

    def jobs(self, request: Request) -> list[Job]:
        """Its tiles, row by row; none where nothing is to be done."""
        return [] if request.is_unchanged else self._cut(request)

    def batch_size(self, kind: Kind) -> int:
        """How many jobs of a kind are run together."""
        return max(1, self._batch_px // (kind.height_px * kind.width_px))

    def run(self, batch: list[Job]) -> None:
        """Run jobs of one kind, and write their cores into the clean photos; in smaller parts if memory runs out.

        Raises:
            FloatingPointError, MemoryError: see `__call__`.
        """
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                self._run(part)
                continue
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1 and max(part[0].core_shape) <= SMALLEST_TILE_PX:
                    raise MemoryError(f"no memory on {self.device} for a tile of {SMALLEST_TILE_PX} pixels") from error
            # Outside of the handler, where the traceback no longer keeps the tensors of the failed run alive.
            parts.extend(self._cut_smaller(part))

    def _cut_smaller(self, batch: list[Job]) -> list[list[Job]]:
        """Two batches of half the jobs, or of a single job its tile in smaller ones. Later photos start from there."""
        failed_px = len(batch) * batch[0].kind.height_px * batch[0].kind.width_px
        if len(batch) > 1:
            self._batch_px = min(self._batch_px, failed_px // 2)
            logger.warning("out of memory on %s: batches now have at most %d pixels", self.device, self._batch_px)
            half = len(batch) // 2
            return [batch[half:], batch[:half]]
        (job,) = batch
        self._batch_px = min(self._batch_px, failed_px // 4)
        self._tile_px = max(SMALLEST_TILE_PX, max(job.core_shape) // 2)
        logger.warning("out of memory on %s: tiles now have a side of at most %d", self.device, self._tile_px)
        return [[smaller] for smaller in reversed(self._cut(job.request, job.tile.core))]

    def _cut(self, request: Request, area: Rectangle | None = None) -> list[Job]:
        height_px, width_px = request.noisy.shape[:2]
        network = self._networks[Part.GENERAL]  # the same tiles fit the other
        tiles = plan_tiles(
            height_px,
            width_px,
            tile_px=self._tile_px,
            halo_px=network.halo_px,
            multiple_px=network.multiple_px,
            area=area,
        )
        return [Job(request, tile, self._kind(request, tile)) for tile in tiles]

    def _kind(self, request: Request, tile: Tile) -> Kind:
        multiple_px = self._networks[Part.GENERAL].multiple_px
        return Kind(
            padded_px(tile.read.height_px, multiple_px),
            padded_px(tile.read.width_px, multiple_px),
            request.noisy.dtype,
            is_gray=request.noisy.ndim == 2,
            part=Part.WHITE if request.is_white and Part.WHITE in self._networks else Part.GENERAL,
            precision=self._precision_of(request.noisy.dtype),
        )

    @torch.inference_mode()
    def _run(self, batch: list[Job]) -> None:
        first, kind = batch[0].request.noisy, batch[0].kind
        padded_BHWC = np.empty((len(batch), kind.height_px, kind.width_px, *first.shape[2:]), first.dtype)
        for job, padded_HWC in zip(batch, padded_BHWC, strict=True):
            job.read_into(padded_HWC)
        noisy_BHWC = torch.from_numpy(padded_BHWC).to(self.device).to(torch.float32).mul_(1 / PEAKS[first.dtype])
        if first.ndim == 2:
            noisy_BHWC = noisy_BHWC[..., None].repeat(1, 1, 1, 3)
        # The permuted view is what torch calls channels_last: no pixel moves.
        noisy_BCHW = noisy_BHWC.permute(0, 3, 1, 2)
        level_B2 = torch.tensor([job.request.level for job in batch], device=self.device) / PEAK
        is_filled_alone = all(job.request.strength == 0 for job in batch)
        if is_filled_alone:
            clean_BCHW = noisy_BCHW
        else:
            only_B = [job.request.only_channel for job in batch]
            clean_BCHW = self._run_network(_as_gray(noisy_BCHW, only_B), level_B2, kind)
        for job, noisy_CHW, clean_CHW in zip(batch, noisy_BCHW, clean_BCHW, strict=True):
            job.write(noisy_CHW, clean_CHW)

    def _run_network(self, noisy_BCHW: Tensor, level_B2: Tensor, kind: Kind) -> Tensor:
        is_autocast = kind.precision is not Precision.FLOAT32
        lower = getattr(torch, kind.precision.value) if is_autocast else None
        with torch.autocast(self.device.type, dtype=lower, enabled=is_autocast):
            clean_BCHW: Tensor = self._networks[kind.part](noisy_BCHW, level_B2)
        return clean_BCHW.float()

    def _precision_of(self, dtype: np.dtype[Any]) -> Precision:
        if self.precision is not Precision.AUTO:
            return self.precision
        return self._fastest if dtype == np.uint8 else Precision.FLOAT32


def _as_gray(noisy_BCHW: Tensor, only_B: Sequence[int | None]) -> Tensor:
    """What the network is shown: photos of one channel only are gray ones of that channel."""
    if all(only is None for only in only_B):
        return noisy_BCHW
    noisy_BCHW = noisy_BCHW.clone()
    for noisy_CHW, only in zip(noisy_BCHW, only_B, strict=True):
        if only is not None:
            noisy_CHW[:] = noisy_CHW[only].clone()
    return noisy_BCHW
