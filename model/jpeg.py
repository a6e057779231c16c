"""What JPEG does to a photo, in tensors: chroma subsampling and the quantisation of 8 × 8 DCT blocks (ITU-T T.81).

For training noise only. It follows libjpeg's tables and scaling, without its integer arithmetic.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 255.0
BLOCK_PX = 8
LEVEL_SHIFT = 128.0  # ITU-T T.81, A.3.1, of samples of 8 bits

# ITU-T T.81, tables K.1 and K.2: quantisation steps at quality 50.
LUMA_STEPS = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
)
CHROMA_STEPS = torch.tensor(
    [
        [17, 18, 24, 47, 99, 99, 99, 99],
        [18, 21, 26, 66, 99, 99, 99, 99],
        [24, 26, 56, 99, 99, 99, 99, 99],
        [47, 66, 99, 99, 99, 99, 99, 99],
        *[[99] * 8] * 4,
    ],
    dtype=torch.float32,
)
# ITU-R BT.601 as JFIF uses it: rows are Y, Cb, Cr.
RGB_TO_YCBCR = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
YCBCR_TO_RGB = torch.linalg.inv(RGB_TO_YCBCR)
# Row k holds the k-th cosine of the orthonormal DCT-II.
COSINES = torch.tensor(
    [
        [math.sqrt((1 if k == 0 else 2) / BLOCK_PX) * math.cos(math.pi * k * (2 * n + 1) / 16) for n in range(BLOCK_PX)]
        for k in range(BLOCK_PX)
    ]
)


def pass_through_jpeg(photo_BCHW: Tensor, quality_B: Tensor, is_420_B: Tensor) -> Tensor:
    """The photos after they were saved as JPEG and opened again.

    Args:
        photo_BCHW: sRGB in [0, 1]; both sides multiples of 16 pixels.
        quality_B: libjpeg's quality, 1–100.
        is_420_B: whether the chroma is halved on both axes (4:2:0) rather than kept (4:4:4).
    """
    ycbcr_BCHW = torch.einsum("ij,bjhw->bihw", RGB_TO_YCBCR, photo_BCHW) * PEAK
    luma_BCHW, chroma_BCHW = ycbcr_BCHW[:, :1] - LEVEL_SHIFT, ycbcr_BCHW[:, 1:]

    luma_BCHW = _quantise(luma_BCHW, _steps(LUMA_STEPS, quality_B)) + LEVEL_SHIFT
    full_BCHW = _quantise(chroma_BCHW, _steps(CHROMA_STEPS, quality_B))
    if is_420_B.any():
        half_BCHW = _quantise(F.avg_pool2d(chroma_BCHW[is_420_B], 2), _steps(CHROMA_STEPS, quality_B[is_420_B]))
        full_BCHW[is_420_B] = F.interpolate(half_BCHW, scale_factor=2, mode="bilinear", align_corners=False)
    ycbcr_BCHW = torch.cat([luma_BCHW, full_BCHW], dim=1)
    rgb_BCHW = torch.einsum("ij,bjhw->bihw", YCBCR_TO_RGB, ycbcr_BCHW)
    return rgb_BCHW.clamp(0, PEAK).round() / PEAK


def _steps(table: Tensor, quality_B: Tensor) -> Tensor:
    """The quantisation table of each photo, (B, 8, 8), scaled as libjpeg's `jpeg_set_quality` does."""
    percent_B = torch.where(quality_B < 50, 5000 / quality_B, 200 - 2 * quality_B)
    return ((table * percent_B[:, None, None] + 50) / 100).floor().clamp(1, 255)


def _quantise(plane_BCHW: Tensor, steps_B88: Tensor) -> Tensor:
    """Round the DCT coefficients of each 8 × 8 block to multiples of their steps."""
    batch, channels, height, width = plane_BCHW.shape
    shape = (batch, channels, height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX)
    blocks = plane_BCHW.reshape(shape).transpose(3, 4)
    steps = steps_B88[:, None, None, None]
    coefficients = COSINES @ blocks @ COSINES.T
    rounded = (coefficients / steps).round() * steps
    return (COSINES.T @ rounded @ COSINES).transpose(3, 4).reshape(plane_BCHW.shape)
