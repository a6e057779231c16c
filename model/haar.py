"""The Haar transform of square blocks of a photo: noise is spread over its bands, and edges are in few of them."""

import functools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCK_PX = 16  # a multiple of 8, so that no block crosses those of a JPEG


def squares(axes_NAP: Floats, level: int, kind: str) -> Floats:
    """The mean square of each block's coefficients in one band, on each axis: (N, A)."""
    # One product for all: NumPy multiplies stacks of small matrices one by one.
    bands = axes_NAP.reshape(-1, BLOCK_PX**2) @ band(level, kind)
    squares_NA: Floats = np.einsum("mk,mk->m", bands, bands).reshape(axes_NAP.shape[:2]) / bands.shape[1]
    return squares_NA


@functools.cache
def band(level: int, kind: str, area: tuple[int, int] = (BLOCK_PX, BLOCK_PX)) -> Floats:
    """One band of the orthonormal Haar transform of an area: (P, K), a vector of length 1 for each coefficient."""
    cell = 2**level
    smooth = np.ones(cell)
    step = np.repeat([1.0, -1.0], cell // 2)
    vertical, horizontal = {
        "rows": (step, smooth), "columns": (smooth, step), "diagonal": (step, step), "smooth": (smooth, smooth)
    }[kind]  # fmt: skip
    rows, columns = (np.eye(extent // cell) for extent in area)
    vectors_PK: Floats = (np.kron(np.kron(rows, vertical), np.kron(columns, horizontal)).T / cell).astype(np.float32)
    return vectors_PK
