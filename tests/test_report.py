"""The page of `degrain report` as text: what it says, and what it does where there is little or nothing to say."""

import dataclasses
import io
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from loop import Loop
from photos import saved, scene, write_archive
from rows import row

import pipeline.report
from flows.cli import main
from pipeline.cases import POISON_REASON
from pipeline.charts import Series, draw_histogram, draw_timeline, nice_step
from pipeline.denoise import DenoiseConfig
from pipeline.errors import StorageError
from pipeline.imageset import ImageSet
from pipeline.ingest import IngestJob, run_ingest
from pipeline.jobs import DenoiseJob, run_denoise
from pipeline.records import Layout, Outcome
from pipeline.report import ReportJob, render, run_report
from pipeline.storage import Store, open_store


class Page(HTMLParser):
    """What a reader sees, and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def pictures(self) -> list[str]:
        return [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]


def report(target: str | Path, photos: int = 4) -> Page:
    return Page(render(ReportJob(target=str(target), output="report.html", photos=photos)))


def denoise(job: DenoiseJob) -> str:
    run_denoise(job, lambda _: None)
    return job.target


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DenoiseJob:
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source").mkdir()
    for number in range(3):
        (tmp_path / f"source/{number}.png").write_bytes(saved(scene(seed=number, side_px=64), "PNG"))
    return DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"))


@pytest.mark.parametrize("layout", Layout)
def test_every_number_and_reason_of_an_archive_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layout: Layout
) -> None:
    Loop.instead_of_cluster(monkeypatch)
    write_archive(tmp_path / "source")

    page = report(denoise(DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target"), layout=layout)))

    assert "denoised 6 untouched 3 rejected 4" in page.text
    assert "palette" in page.text
    assert "untouched CMYK is not denoised 1" in page.text
    assert "truncated.jpg" in page.text
    assert len(page.pictures) >= 4 * 4  # whole and in detail, before and after


def test_the_page_holds_all_that_it_shows(job: DenoiseJob) -> None:
    page = report(denoise(job))

    loading = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert {str(value).partition("/")[0] for value in loading} == {"data:image"}
    [policy] = [values["content"] for tag, values in page.tags if values.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert [name for _, values in page.tags for name in values if name == "style" or name.startswith("on")] == []


def test_names_are_told_as_they_are_and_never_as_markup(job: DenoiseJob) -> None:
    name = "<b>'\"&{{ 7*7 }}\u202e.png"
    (Path(job.source) / name).write_bytes(b"")

    page = report(denoise(job))

    assert "<b>'\"&{{ 7*7 }}\\u202e.png" in page.text  # and it does not turn the line around
    assert "b" not in {tag for tag, _ in page.tags}


def test_a_source_that_is_gone_or_has_changed_is_told_and_its_result_still_shown(job: DenoiseJob) -> None:
    denoise(job)
    (Path(job.source) / "0.png").unlink()
    (Path(job.source) / "1.png").write_bytes(saved(scene(seed=9, side_px=64), "PNG"))

    page = report(job.target)

    assert "The source cannot be shown: cannot read 0.png" in page.text
    assert "The source cannot be shown: it has changed since" in page.text
    assert len(page.pictures) == 4 + 2 + 2


def test_a_whole_source_that_is_gone_stops_nothing(job: DenoiseJob) -> None:
    denoise(job)
    Path(job.source).rename(Path(job.source).with_name("elsewhere"))

    assert len(report(job.target).pictures) == 3 * 2


@pytest.mark.parametrize("fails", ["photos_of", "read_photos"])
def test_a_source_that_cannot_be_reached_is_asked_once(
    job: DenoiseJob, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    denoise(job)
    asked: list[Store] = []
    works = getattr(pipeline.report, fails)

    def unreachable(store: Store, *photos: object) -> object:
        if store.url != job.source:
            return works(store, *photos)
        asked.append(store)
        raise StorageError("nobody answers")

    monkeypatch.setattr(pipeline.report, fails, unreachable)

    assert report(job.target).text.count("The source cannot be shown: nobody answers") == 3
    assert len(asked) == 1


def test_an_index_of_an_older_degrain_is_told_of_without_what_it_did_not_know(job: DenoiseJob) -> None:
    target = Path(denoise(job))
    manifest = json.loads((target / "manifest.json").read_text())
    older = io.BytesIO()
    pq.write_table(pq.read_table(target / manifest["index"][0]).drop_columns(["camera", "iso", "megapixels"]), older)
    part = f"index/part-older-{sha256(older.getvalue()).hexdigest()[:8]}.parquet"
    (target / part).write_bytes(older.getvalue())
    (target / "manifest.json").write_text(json.dumps({**manifest, "index": [part]}))

    assert "denoised 3" in report(target).text


def test_a_result_that_is_damaged_is_told(job: DenoiseJob) -> None:
    denoise(job)
    (Path(job.target) / "images/0.png").write_bytes(b"x")
    (Path(job.target) / "images/1.png").unlink()

    text = report(job.target).text

    assert "The result cannot be shown: it is not as its row says (see: degrain verify)" in text
    assert "The result cannot be shown: cannot read images/1.png" in text


def test_a_packed_set_shows_what_is_in_it_and_can_be_the_source_of_another(job: DenoiseJob, tmp_path: Path) -> None:
    run_ingest(IngestJob(source=job.source, target=str(tmp_path / "packed")), lambda _: None)

    packed = report(tmp_path / "packed")
    denoised = report(denoise(dataclasses.replace(job, source=str(tmp_path / "packed"))))

    assert "packed 3" in packed.text
    assert "No photo was denoised here" in packed.text
    assert len(packed.pictures) == len(denoised.pictures) == 3 * 4


def test_the_index_of_a_packed_source_is_read_once_however_many_photos_are_shown(
    job: DenoiseJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ingest(IngestJob(source=job.source, target=str(tmp_path / "packed")), lambda _: None)
    denoise(dataclasses.replace(job, source=str(tmp_path / "packed")))
    read, read_index = [], ImageSet.local_index
    monkeypatch.setattr(ImageSet, "local_index", lambda self: read.append(self.store.url) or read_index(self))

    assert len(report(job.target).pictures) == 3 * 4
    assert read.count(str(tmp_path / "packed")) == 1


def test_where_there_is_little_to_tell_it_says_so(job: DenoiseJob) -> None:
    for path in Path(job.source).iterdir():
        path.write_bytes(b"")

    text = report(denoise(job)).text

    assert "No photo was denoised here, so there is no noise to compare." in text
    assert "No result is shown: there is none, or none was asked for." in text
    assert "rejected the file is empty 3" in text
    sound = report(denoise(dataclasses.replace(job, target=f"{job.target}-2", retry_failed=True)))
    assert "No photo was rejected." not in sound.text


def test_a_set_in_which_nothing_is_done_yet_is_one_clear_line(job: DenoiseJob) -> None:
    image_set = ImageSet(open_store(job.target))
    image_set.open_for(job.source, Layout.FILES)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"nothing is done in .*/target yet: there is nothing to report"):
            report(job.target)
        image_set.publish("run-1", [])


def test_a_photo_that_nothing_was_changed_of_breaks_no_chart(job: DenoiseJob) -> None:
    page = report(denoise(dataclasses.replace(job, denoise=DenoiseConfig(strength=0.0))))

    assert "the strength is 0" in page.text
    assert re.findall(r"\b(?:nan|inf|None)\b", page.text) == []


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ink", ["ink", "muted", "rejected", "accent"])
def test_what_is_written_on_a_card_can_be_read(ink: str, theme: int) -> None:
    style = files("pipeline").joinpath("page/report.css").read_text()

    def luminance(name: str) -> float:
        colour = re.findall(rf"--{name}: #(\w{{6}});", style)[theme]
        levels = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [((each + 0.055) / 1.055) ** 2.4 if each > 0.04 else each / 12.92 for each in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted([luminance("card"), luminance(ink)])
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def test_photos_and_rejected_ones_are_bounded_whatever_the_size_of_the_set(job: DenoiseJob) -> None:
    for number in range(60):
        (Path(job.source) / f"empty-{number}.jpg").write_bytes(b"")

    page = report(denoise(job), photos=1)

    assert "24 of 60, of each reason some." in page.text
    assert len(page.pictures) <= 3 * 4


def test_a_photo_that_ends_the_process_that_opens_it_is_told_of_and_not_opened(job: DenoiseJob) -> None:
    image_set = ImageSet(open_store(job.target))
    image_set.open_for(job.source, Layout.FILES)
    poisonous = row("0.png", outcome=Outcome.REJECTED, reason=POISON_REASON)
    image_set.commit("s", [dataclasses.replace(poisonous, source_sha256=None)])
    image_set.publish("run-1", ["s"])

    page = report(job.target)

    assert f"0.png {POISON_REASON}" in page.text
    assert page.pictures == []


def test_the_command_writes_the_page_and_refuses_another_kind_of_file(job: DenoiseJob, tmp_path: Path) -> None:
    denoise(job)

    assert main(["report", job.target, "-o", str(tmp_path / "report.html")]) == 0
    assert main(["report", job.target, "-o", str(tmp_path / "source/0.png")]) == 2
    assert main(["report", job.source, "-o", str(tmp_path / "other.html")]) == 2

    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert not (tmp_path / "other.html").exists()


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()

    with pytest.raises(StorageError, match=r"^cannot write page\.html to \S+: a folder has this name$"):
        run_report(ReportJob(target=str(tmp_path / "none"), output=str(tmp_path / "page.html")))


def test_the_page_is_installed_with_the_package() -> None:
    assert {each.name for each in files("pipeline").joinpath("page").iterdir()} == {
        "report.html", "report.css", "report.js"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("largest", "bins", "step"), [(10, 10, 1), (11, 10, 2), (0.3, 32, 0.01), (21, 10, 2.5), (99, 10, 10), (0, 5, 1)]
)
def test_bins_have_round_edges(largest: float, bins: int, step: float) -> None:
    assert nice_step(largest, bins) == pytest.approx(step)


def test_charts_of_nothing_are_drawn() -> None:
    assert "aria-label" in draw_histogram([Series("before", [])], start=0, step=1, unit="σ", summary="nothing")
    assert "aria-label" in draw_timeline([], labels=("a", "b"), unit="<s>", summary='"quoted"')
