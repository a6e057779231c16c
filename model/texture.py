"""Was it noise that the network took out of a photo, or the texture of a photo that has no noise?

Where a photo is texture all over, no part of it shows what its noise is, and the estimate takes fine texture for noise.
What the network then takes out gives it away. Noise knows nothing of the photo, but taking out texture blurs it: what
was taken out goes with the second derivative of what is left, as in unsharp masking. It is also gray, where the noise
of cameras is colour at least in part, and its neighbours are alike, where those of white noise are not.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.blocks import LUMA_CHROMA

# Measured on clean photos, and on the same with noise of five cameras, white, and through JPEG.
LEAST_BLUR = 0.3  # correlation with the Laplacian of what is left
LEAST_ALIKE = 0.1  # correlation of neighbours; of white noise below 0.05
MOST_COLOUR = 0.07  # variance on an axis of the chrominance over that of the luminance


class Removed:
    """What was taken out of a photo in colour, by rows of it before and after; the same at any bit depth."""

    def __init__(self) -> None:
        self._with_laplacian = self._laplacian = self._inner = 0.0
        self._neighbours = self._luma = self._chroma = 0.0

    def add(self, noisy_HWC: NDArray[Any], clean_HWC: NDArray[Any]) -> None:
        """The same rows of both; fewer than three tell nothing. Any: uint8 or uint16."""
        if min(noisy_HWC.shape[:2]) < 3:
            return
        noisy_HWC, clean_HWC = noisy_HWC.astype(np.float32), clean_HWC.astype(np.float32)
        luma_HW, *chroma_HW = np.moveaxis((noisy_HWC - clean_HWC) @ LUMA_CHROMA.T, -1, 0)
        left_HW = clean_HWC @ LUMA_CHROMA[0]
        around_HW = left_HW[:-2, 1:-1] + left_HW[2:, 1:-1] + left_HW[1:-1, :-2] + left_HW[1:-1, 2:]
        laplacian_HW, inner_HW = 4 * left_HW[1:-1, 1:-1] - around_HW, luma_HW[1:-1, 1:-1]
        self._with_laplacian += _dot(inner_HW, laplacian_HW)
        self._laplacian += _dot(laplacian_HW, laplacian_HW)
        self._inner += _dot(inner_HW, inner_HW)
        self._neighbours += (_dot(luma_HW[:, 1:], luma_HW[:, :-1]) + _dot(luma_HW[1:], luma_HW[:-1])) / 2
        self._luma += _dot(luma_HW, luma_HW)
        self._chroma += sum(_dot(axis_HW, axis_HW) for axis_HW in chroma_HW) / 2

    @property
    def is_texture(self) -> bool:
        return (
            self._with_laplacian > LEAST_BLUR * (self._laplacian * self._inner) ** 0.5
            and self._neighbours > LEAST_ALIKE * self._luma
            and self._chroma < MOST_COLOUR * self._luma
        )


def _dot(a_HW: NDArray[np.float32], b_HW: NDArray[np.float32]) -> float:
    return float(np.einsum("hw,hw->", a_HW, b_HW, dtype=np.float64))
