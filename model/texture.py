"""Was it noise that the network took out of a photo, or the texture of a photo that has no noise?

Where a photo is texture all over, no part of it shows what its noise is, and the estimate takes fine texture for noise.
What the network then takes out gives it away. Noise knows nothing of the photo, but taking out texture blurs it: what
was taken out goes with the second derivative of what is left, as in unsharp masking. It is also gray, where the noise
of cameras is colour at least in part, and its neighbours are alike, where those of white noise are not.

Regular texture, the dots of a halftone or of ordered dithering, tells itself even in gray: it repeats itself along the
rows, again and again, and noise never does, whatever camera, grain or JPEG have made of it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.blocks import LUMA_CHROMA

# Measured on clean photos, and on the same with noise of five cameras, white, and through JPEG.
LEAST_BLUR = 0.3  # correlation with the Laplacian of what is left
LEAST_ALIKE = 0.1  # correlation of neighbours; of white noise below 0.05
MOST_COLOUR = 0.07  # variance on an axis of the chrominance over that of the luminance

PIECE_PX = 64  # of a row, within which it is looked for what comes back
NEAREST_PX = 4  # what is nearer, filters have made alike
# Correlation with what lies so far away, above what lies between, less three times its standard error: beyond it,
# most of what was removed is a pattern. Of noise in photos 0.13 at most.
LEAST_REPEATED = 0.5


class Removed:
    """What was taken out of a photo, by rows of it before and after; the same at any bit depth.

    Args:
        tells_blur: whether it is a photo in colour, of which more was removed than single pixels: only there what
            blurs it is told from noise.
    """

    def __init__(self, *, tells_blur: bool = True) -> None:
        self._tells_blur = tells_blur
        self._products_XX = np.zeros((1, 1), np.float32)  # of all pixels of a piece with each other
        self._pieces = 0
        self._with_laplacian = self._laplacian = self._inner = 0.0
        self._neighbours = self._luma = self._chroma = 0.0

    def add(self, noisy: NDArray[Any], clean: NDArray[Any]) -> None:
        """The same rows of both, (H, W, 3) or (H, W); fewer than three tell nothing. Any: uint8 or uint16."""
        if min(noisy.shape[:2]) < 3:
            return
        noisy, clean = noisy.astype(np.float32), clean.astype(np.float32)
        if noisy.ndim == 2:
            self._look_for_repeats(noisy - clean)
            return
        luma_HW, *chroma_HW = np.moveaxis((noisy - clean) @ LUMA_CHROMA.T, -1, 0)
        left_HW = clean @ LUMA_CHROMA[0]
        around_HW = left_HW[:-2, 1:-1] + left_HW[2:, 1:-1] + left_HW[1:-1, :-2] + left_HW[1:-1, 2:]
        laplacian_HW, inner_HW = 4 * left_HW[1:-1, 1:-1] - around_HW, luma_HW[1:-1, 1:-1]
        self._with_laplacian += _dot(inner_HW, laplacian_HW)
        self._laplacian += _dot(laplacian_HW, laplacian_HW)
        self._inner += _dot(inner_HW, inner_HW)
        self._neighbours += (_dot(luma_HW[:, 1:], luma_HW[:, :-1]) + _dot(luma_HW[1:], luma_HW[:-1])) / 2
        self._luma += _dot(luma_HW, luma_HW)
        self._chroma += sum(_dot(axis_HW, axis_HW) for axis_HW in chroma_HW) / 2
        self._look_for_repeats(luma_HW)

    @property
    def is_texture(self) -> bool:
        return self._repeats_itself or (self._tells_blur and self._is_blur)

    def _look_for_repeats(self, luma_HW: NDArray[np.float32]) -> None:
        width = luma_HW.shape[1]
        piece_px = min(PIECE_PX, width)
        pieces_NX = luma_HW[:, : width - width % piece_px].reshape(-1, piece_px)
        self._products_XX = self._products_XX + pieces_NX.T @ pieces_NX
        self._pieces += len(pieces_NX)

    @property
    def _repeats_itself(self) -> bool:
        """Whether what lies some pixels away is alike again, after what lies between was not."""
        piece_px = len(self._products_XX)
        distances_D = np.arange(piece_px // 2 + 1)
        alike_D = np.array([np.diagonal(self._products_XX, distance).mean() for distance in distances_D])
        between_D = np.minimum.accumulate(alike_D)[NEAREST_PX - 1 : -1]
        far_D, pairs_D = alike_D[NEAREST_PX:], self._pieces * (piece_px - distances_D[NEAREST_PX:])
        least_D = (LEAST_REPEATED + 3 / np.sqrt(pairs_D)) * alike_D[0]
        return bool((np.minimum(far_D, far_D - between_D) > least_D).any())

    @property
    def _is_blur(self) -> bool:
        return (
            self._with_laplacian > LEAST_BLUR * (self._laplacian * self._inner) ** 0.5
            and self._neighbours > LEAST_ALIKE * self._luma
            and self._chroma < MOST_COLOUR * self._luma
        )


def _dot(a_HW: NDArray[np.float32], b_HW: NDArray[np.float32]) -> float:
    return float(np.einsum("hw,hw->", a_HW, b_HW, dtype=np.float64))
