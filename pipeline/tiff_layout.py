"""Where the photo of a TIFF lies: its directories, its strips or tiles, and what else is known of the file."""

import itertools
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.container import is_trailed
from pipeline.errors import PhotoRejected
from pipeline.ifd import CORRUPT, EXIF_IFD, MAX_VALUES, TRUNCATED, Data, Directory, File, open_file, read_directory

# Tags, by the names that TIFF 6.0 gives them.
SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_SIZES, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = 322, 323, 324, 325
SUB_IFDS, EXTRA_SAMPLES, SAMPLE_FORMAT = 330, 338, 339
THUMBNAIL_OFFSET, THUMBNAIL_SIZE = 513, 514  # of a JPEG
GPS_IFD, INTEROPERABILITY_IFD = 34853, 40965
DATA_TAGS = (STRIP_OFFSETS, STRIP_SIZES), (TILE_OFFSETS, TILE_SIZES), (THUMBNAIL_OFFSET, THUMBNAIL_SIZE)
LAYOUT_TAGS = {
    *(SUBFILE_TYPE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES, ROWS_PER_STRIP, PLANAR),
    *(PREDICTOR, TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT, *DATA_TAGS[0], *DATA_TAGS[1]),
}
POINTERS = SUB_IFDS, EXIF_IFD, GPS_IFD, INTEROPERABILITY_IFD  # to further directories

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, SENSOR_MOSAIC, LINEAR_RAW = 0, 1, 2, 3, 5, 32803, 34892
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 7, 8, 32946, 32773, 34925, 50000
HORIZONTAL = 2  # the predictor that stores differences between neighbours
UNSPECIFIED, ASSOCIATED_ALPHA = 0, 1  # of EXTRA_SAMPLES: a mask is unspecified, which shows and hides nothing

MAX_TILE_PX = 1 << 24  # of a tile that is larger than its photo
MAX_DIRECTORIES = 64  # of one photo; more are hostile


@dataclass(frozen=True, slots=True)
class Segment:
    """One strip or tile: the samples that it holds, and its bytes in the file."""

    plane: int
    top: int
    left: int
    rows: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How the samples of the photo are laid out.

    Attributes:
        samples: of a pixel, alpha among them.
        dtype: of a sample, in the file's byte order.
        photometric, compression, predictor, alpha_kind: values of the tags, where they are left out their defaults.
        is_planar: whether each sample of the pixels lies in a plane of its own.
        segment_width_px, segment_height_px: of a strip or tile; the last strip may have fewer rows.
        offsets_tag, sizes_tag: which tags tell where the strips or tiles lie.
        is_trailed: by data to which nothing known points, or by what is said to be there and is not.
    """

    file: File
    directory: Directory
    width_px: int
    height_px: int
    samples: int
    dtype: np.dtype[np.unsignedinteger[Any]]
    photometric: int
    compression: int
    predictor: int
    is_planar: bool
    alpha_kind: int
    segment_width_px: int
    segment_height_px: int
    offsets_tag: int
    sizes_tag: int
    segments: tuple[Segment, ...]
    is_trailed: bool = False

    def decoded_bytes(self, segment: Segment) -> int:
        """What the samples of a strip or tile take, padding included."""
        samples = segment.rows * self.segment_width_px * (1 if self.is_planar else self.samples)
        return samples * self.dtype.itemsize


def read_layout(data: Data) -> Layout:
    """Where the strips or tiles of the photo lie, and whether other data trail all that is known of the file.

    Raises:
        PhotoRejected: the TIFF is cut off or corrupt.
    """
    file = open_file(data)
    pages, others = read_directories(file)
    layout = layout_of(file, pages[0])
    directories = [*pages, *others]
    known = (*_spans(layout, directories), *_data_spans(file, pages[0]))  # some writers state a strip too many
    pointers = (start for each in directories for tag in POINTERS for start in file.values(each, tag)[:MAX_DIRECTORIES])
    end = max(*(end for _, end, _ in known), *(start + 1 for start in pointers))
    return replace(layout, is_trailed=end > len(data) or is_trailed(data, end))


def read_directories(file: File) -> tuple[list[Directory], list[Directory]]:
    """The main chain of directories, one at least, and those that hang below it: sub-images, EXIF, GPS.

    Raises:
        PhotoRejected: there is none, or one of those that are needed is cut off or corrupt.
    """
    pages: list[Directory] = []
    others: list[Directory] = []
    seen: set[int] = set()
    offset = file.first_offset
    while offset and offset not in seen and len(seen) < MAX_DIRECTORIES:
        seen.add(offset)
        pages.append(read_directory(file, offset))
        offset = pages[-1].next_offset
    if not pages:
        raise PhotoRejected(CORRUPT)
    queue = list(pages)
    while queue:
        directory = queue.pop(0)
        for tag in POINTERS:
            for offset in file.values(directory, tag)[:MAX_DIRECTORIES]:
                if offset and offset not in seen and len(seen) < MAX_DIRECTORIES:
                    seen.add(offset)
                    # Programs copy the tag of EXIF into files without it: in no format does that fail the photo.
                    with nullcontext() if tag == SUB_IFDS else suppress(PhotoRejected):
                        others.append(read_directory(file, offset))
                        queue.append(others[-1])
    return pages, others


def layout_of(file: File, photo: Directory) -> Layout:
    """Where the strips or tiles of a photo lie, by its directory; whether the file is trailed is not looked at.

    Raises:
        PhotoRejected: they lie beyond the end of the file, or make no sense.
    """
    value = file.value
    width_px, height_px = value(photo, WIDTH, 0), value(photo, HEIGHT, 0)
    samples, is_planar = value(photo, SAMPLES, 1), value(photo, PLANAR, 1) == 2
    is_tiled = TILE_OFFSETS in photo.entries
    dtype: np.dtype[np.unsignedinteger[Any]] = np.dtype(f"{file.order}u{value(photo, BITS, 8) // 8}")
    offsets_tag, sizes_tag = (TILE_OFFSETS, TILE_SIZES) if is_tiled else (STRIP_OFFSETS, STRIP_SIZES)
    segment_width_px = value(photo, TILE_WIDTH, 0) if is_tiled else width_px
    segment_height_px = (
        value(photo, TILE_HEIGHT, 0) if is_tiled else min(value(photo, ROWS_PER_STRIP, height_px), height_px)
    )
    offsets, sizes = file.values(photo, offsets_tag), file.values(photo, sizes_tag)
    planes = samples if is_planar else 1
    if not 0 < segment_width_px * segment_height_px <= width_px * height_px + MAX_TILE_PX:
        raise PhotoRejected(CORRUPT)
    count = planes * -(-width_px // segment_width_px) * -(-height_px // segment_height_px)
    compression = value(photo, COMPRESSION, NONE)
    if not any(sizes) and compression == NONE:
        sizes = [len(file.data)] * len(offsets)  # some writers leave out what can be computed
    if not 0 < count <= min(len(offsets), len(sizes)):  # some writers state one too many
        raise PhotoRejected(CORRUPT)
    layout = Layout(
        file=file,
        directory=photo,
        width_px=width_px,
        height_px=height_px,
        samples=samples,
        dtype=dtype,
        photometric=value(photo, PHOTOMETRIC, BLACK_IS_ZERO),
        compression=compression,
        predictor=value(photo, PREDICTOR, 1),
        is_planar=is_planar,
        alpha_kind=value(photo, EXTRA_SAMPLES, UNSPECIFIED) if samples in (2, 4) else UNSPECIFIED,
        segment_width_px=segment_width_px,
        segment_height_px=segment_height_px,
        offsets_tag=offsets_tag,
        sizes_tag=sizes_tag,
        segments=(),
    )
    return replace(layout, segments=tuple(_segments(layout, offsets[:count], sizes[:count], is_tiled=is_tiled)))


def check_segments_lie_inside(file: File, photo: Directory) -> None:
    """Raises PhotoRejected where the strips or tiles of a photo lie beyond the end of the file."""
    if any(end > len(file.data) for _, end, _ in _data_spans(file, photo)):
        raise PhotoRejected(TRUNCATED)


def overlaps(layout: Layout, directories: list[Directory]) -> bool:
    """Whether a strip or tile of the photo shares bytes with anything else that is known of the file."""
    end_of_any = end_of_segments = 0
    for start, end, is_segment in sorted(_spans(layout, directories)):
        if start < (end_of_any if is_segment else end_of_segments):
            return True
        end_of_any = max(end_of_any, end)
        end_of_segments = max(end_of_segments, end) if is_segment else end_of_segments
    return False


def _segments(layout: Layout, offsets: list[int], sizes: list[int], *, is_tiled: bool) -> Iterator[Segment]:
    tops = range(0, layout.height_px, layout.segment_height_px)
    lefts = range(0, layout.width_px, layout.segment_width_px)
    planes = range(layout.samples if layout.is_planar else 1)
    for (plane, top, left), offset, size in zip(itertools.product(planes, tops, lefts), offsets, sizes, strict=True):
        rows = layout.segment_height_px if is_tiled else min(layout.segment_height_px, layout.height_px - top)
        segment = Segment(plane, top, left, rows, offset, size)
        if layout.compression == NONE:
            segment = replace(segment, size_bytes=layout.decoded_bytes(segment))  # some writers state too many
        if segment.size_bytes > size or offset + segment.size_bytes > len(layout.file.data):
            raise PhotoRejected(TRUNCATED)
        yield segment


def _spans(layout: Layout, directories: list[Directory]) -> list[tuple[int, int, bool]]:
    """From where to where all lies that is known of the file, and whether it is a strip or tile of the photo.

    Raises:
        PhotoRejected: its previews have more strips than real ones: many directories may point to one long list.
    """
    others = [directory for directory in directories if directory.start != layout.directory.start]
    counts = (d.entries[tag].count for d in others for tag in itertools.chain(*DATA_TAGS) if tag in d.entries)
    if sum(counts) > MAX_VALUES:
        raise PhotoRejected(CORRUPT)
    spans = [(s.offset, s.offset + s.size_bytes, True) for s in layout.segments]
    spans.append((0, layout.file.header_bytes, False))
    for directory in directories:
        spans.append((directory.start, directory.end, False))
        spans += [(entry.offset, entry.end, False) for entry in directory.entries.values()]
    for directory in others:
        spans += _data_spans(layout.file, directory)
    return spans


def _data_spans(file: File, directory: Directory) -> Iterator[tuple[int, int, bool]]:
    """The same of the strips, tiles and thumbnail that a directory lists."""
    for tags in DATA_TAGS:
        starts, sizes = (file.values(directory, tag) for tag in tags)
        yield from ((start, start + size, False) for start, size in zip(starts, sizes, strict=False))
