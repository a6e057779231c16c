"""What is shown of a run that ended."""

from pathlib import Path

from rows import NOW, row

from pipeline.highlights import find_highlights
from pipeline.imageset import ImageSet
from pipeline.records import Layout, Outcome
from pipeline.storage import open_store


def test_a_photo_of_more_pixels_than_32_bits_can_count_stops_nothing(tmp_path: Path) -> None:
    image_set = ImageSet(open_store(str(tmp_path / "target")))
    image_set.open_for(str(tmp_path), Layout.FILES)
    broken = row("broken.jpg", outcome=Outcome.REJECTED, reason="the file is empty")
    image_set.commit("s", [broken, row("scan.tif", width_px=60_000, height_px=40_000, noise_sigma_before=9.0)])
    image_set.publish("run-1", ["s"])

    found = find_highlights(str(tmp_path / "target"), since=NOW)

    assert (found.reasons, found.pictures) == ({"the file is empty": 1}, [])
