"""A TIFF that is too large for memory, by bands of rows: decoded when they are asked for, encoded when they are whole.

What is written is what `images.encode` would write, byte by byte; but strips that outgrow their places go to the end of
the file band by band, and there plane by plane.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from model.haar import BLOCK_PX
from pipeline.container import Pixels, Samples
from pipeline.errors import PhotoRejected
from pipeline.ifd import Data
from pipeline.tiff_layout import NONE, STRIP_OFFSETS, Layout, Segment, read_layout
from pipeline.tiff_segments import check_claim, decode_into, to_pixels, to_samples, write_places, write_segment

LARGEST_BAND_BYTES = 128 * 1024**2  # a band is a row of tiles, or one strip: it must be decoded as a whole
PLAIN_ROWS = 64  # in which a strip without compression is taken, which may be the whole photo
KEPT_ROWS = 256  # above the last row that is written: what the next tiles still look at

Window = tuple[slice, slice]  # rows and columns, with both ends


@dataclass(slots=True)
class _Band:
    """Rows of the photo from `top` on that are decoded and encoded together, and which segments they are."""

    number: int
    top: int
    bottom: int
    segments: list[tuple[int, Segment]]  # with their number in the layout
    noisy: Pixels | None = None
    clean: Samples | None = None
    is_given: NDArray[np.bool_] | None = None  # which clean pixels
    is_written: bool = False


class Bands:
    """The colour of a photo, to be read and to be written by windows, from one thread at a time.

    Args:
        data: the file.
        out: a copy of it, which becomes the result.

    Attributes:
        finished: called with the first row, the noisy and the clean pixels of each band that is written.

    Raises:
        PhotoRejected: its strips or tiles are too large to be decoded by bands, or claim what they cannot hold; or it
            is too narrow for its noise to be told.
    """

    finished: Callable[[int, Pixels, Pixels], None]

    def __init__(self, data: Data, out: BinaryIO) -> None:
        self._layout = _in_plain_rows(read_layout(data))
        check_claim(self._layout)
        self._out = out
        self.finished = lambda *_: None
        self._bands = _bands(self._layout)
        self._tops = [band.top for band in self._bands]
        self._first_held = 0  # number of a band: none before it holds noisy rows
        self._first_open = 0  # all before it are written
        self._places: list[tuple[int, int] | None] = [None] * len(self._layout.segments)
        row_bytes = self._layout.width_px * self._layout.samples * self._layout.dtype.itemsize
        if (largest := max(band.bottom - band.top for band in self._bands) * row_bytes) > LARGEST_BAND_BYTES:
            raise PhotoRejected(
                f"its strips or tiles are {largest / 1e6:,.0f} MB each row of them, and a photo of this size is only "
                f"denoised by parts of up to {LARGEST_BAND_BYTES / 1e6:,.0f} MB"
            )
        colours = 1 if self._layout.samples <= 2 else 3
        size = self._layout.height_px, self._layout.width_px
        if min(size) < BLOCK_PX:
            raise PhotoRejected(
                f"one of its sides has {min(size)} pixels, and of a photo of this size, which is only denoised by "
                f"parts, the noise is told by squares of {BLOCK_PX}"
            )
        self.shape: tuple[int, ...] = size if colours == 1 else (*size, colours)
        self.ndim = len(self.shape)
        self.dtype: np.dtype[Any] = self._layout.dtype.newbyteorder("=")

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, window: Window) -> Samples:
        """A copy of the noisy colour there."""
        rows, columns = window
        found = np.empty((rows.stop - rows.start, columns.stop - columns.start, *self.shape[2:]), self.dtype)
        for band, here, there in self._within(rows):
            found[here] = self._noisy(band).colour[there, columns]
        return found

    def seen(self, rows: slice) -> Samples:
        """A copy of the noisy colour of whole rows, as it is seen."""
        found = []
        for band, _, there in self._within(rows):
            noisy = self._noisy(band)
            alpha = None if noisy.alpha is None else noisy.alpha[there]
            found.append(Pixels(noisy.colour[there], alpha, noisy.hides).seen)
        return np.concatenate(found)

    def __setitem__(self, window: Window, clean: NDArray[Any]) -> None:  # Any: the dtype of the photo
        """Give the clean colour there. A band is encoded and written as soon as it is whole."""
        rows, columns = window
        for band, here, there in self._within(rows):
            if band.is_written:
                continue
            if band.clean is None or band.is_given is None:
                band.clean = np.empty((band.bottom - band.top, *self.shape[1:]), self.dtype)
                band.is_given = np.zeros(band.clean.shape[:2], bool)
            band.clean[there, columns] = clean[here]
            band.is_given[there, columns] = True
            if band.is_given.all():
                self._write(band)

    def finish(self) -> None:
        """Complete the file, all bands being written.

        Raises:
            PhotoRejected: it has outgrown the offsets of its kind of TIFF.
        """
        places = [place for place in self._places if place is not None]
        assert len(places) == len(self._places), "every pixel has been given"
        write_places(self._out, self._layout, places)

    def _within(self, rows: slice) -> Iterator[tuple[_Band, slice, slice]]:
        """The bands that share rows with these: which of these each has, and which of its own those are."""
        for band in self._bands[bisect_right(self._tops, rows.start) - 1 : bisect_left(self._tops, rows.stop)]:
            first, last = max(rows.start, band.top), min(rows.stop, band.bottom)
            yield band, slice(first - rows.start, last - rows.start), slice(first - band.top, last - band.top)

    def _noisy(self, band: _Band) -> Pixels:
        if band.noisy is None:
            samples = np.empty((band.bottom - band.top, self._layout.width_px, self._layout.samples), self.dtype)
            for _, segment in band.segments:
                decode_into(samples, self._layout, segment, first_row=band.top)
            band.noisy = to_pixels(samples, self._layout)
            self._first_held = min(self._first_held, band.number)
        return band.noisy

    def _write(self, band: _Band) -> None:
        noisy = self._noisy(band)
        assert band.clean is not None
        clean = replace(noisy, colour=band.clean)
        samples = to_samples(clean, self._layout)
        for number, segment in band.segments:
            place = write_segment(self._out, self._layout, segment, samples, first_row=band.top)
            self._places[number] = place
        self.finished(band.top, noisy, clean)
        band.clean, band.is_given, band.is_written = None, None, True
        while self._first_open < len(self._bands) and self._bands[self._first_open].is_written:
            self._first_open += 1
        self.forget(above=self._bands[min(self._first_open, len(self._bands) - 1)].top - KEPT_ROWS)

    def forget(self, *, above: int) -> None:
        """Hold no decoded rows any more that lie above a row: they are decoded again if they are asked for."""
        while self._first_held < len(self._bands) and self._bands[self._first_held].bottom <= above:
            self._bands[self._first_held].noisy = None
            self._first_held += 1


def _bands(layout: Layout) -> list[_Band]:
    """From top to bottom. The segments of a band may lie apart in the file: each plane's are together."""
    numbered = sorted(enumerate(layout.segments), key=lambda each: each[1].top)
    bands: list[_Band] = []
    for top, found in groupby(numbered, key=lambda each: each[1].top):
        segments = list(found)
        bands.append(_Band(len(bands), top, min(top + segments[0][1].rows, layout.height_px), segments))
    return bands


def _in_plain_rows(layout: Layout) -> Layout:
    """Strips without compression are cut into short ones, which may be read and written each for itself."""
    is_of_strips = layout.segment_width_px == layout.width_px and layout.offsets_tag == STRIP_OFFSETS
    if layout.compression != NONE or not is_of_strips or layout.segment_height_px <= PLAIN_ROWS:
        return layout
    segments = []
    for segment in layout.segments:
        row_bytes = segment.size_bytes // segment.rows
        for first in range(0, segment.rows, PLAIN_ROWS):
            rows = min(PLAIN_ROWS, segment.rows - first)
            segments.append(
                replace(
                    segment,
                    top=segment.top + first,
                    rows=rows,
                    offset=segment.offset + first * row_bytes,
                    size_bytes=rows * row_bytes,
                )
            )
    return replace(layout, segments=tuple(segments), segment_height_px=PLAIN_ROWS)
