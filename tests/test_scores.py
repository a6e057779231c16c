"""Scores become rows, tables, JSON and a plot that say the same."""

import json
import xml.etree.ElementTree as ET

import pytest

from model.evaluate import Score
from model.metrics import MOST_DB
from pipeline.scores import Evaluation, PhotoScore, Row, format_markdown, format_row, summarise


def _score(psnr_db: float, *, noisy_db: float = 20.0) -> Score:
    return Score(
        noisy_psnr_db=noisy_db,
        psnr_db=psnr_db,
        ssim=0.9,
        noise_left=0.05,
        detail_lost=0.2,
        sigma=25,
        estimated_sigma=26,
    )


def _scores(denoiser: str, *psnr_db: float) -> list[PhotoScore]:
    return [
        PhotoScore(trial="file, σ 25", denoiser=denoiser, key=f"{number}.png", score=_score(each))
        for number, each in enumerate(psnr_db)
    ]


FIRST = _scores("photo", 30, 32, 19)


@pytest.fixture
def rows() -> list[Row]:
    return [
        summarise(FIRST, weights="a" * 64, first=FIRST),
        summarise(_scores("bm3d", 29.5), weights=None, first=FIRST),
    ]


def test_the_win_rate_is_the_share_of_photos_that_came_closer(rows: list[Row]) -> None:
    assert rows[0].win_rate == pytest.approx(2 / 3)
    assert rows[0].mean.gain_db == pytest.approx(7)


def test_a_denoiser_is_as_far_behind_as_on_its_own_photos(rows: list[Row]) -> None:
    assert [row.behind_db for row in rows] == [0, 0.5]
    assert rows[1].photos == 1


def test_the_table_says_what_the_rows_say(rows: list[Row]) -> None:
    assert "photo         20.00   27.00   +7.00  0.9000    67 %      3 " in format_row(rows[0])
    assert format_row(rows[1]).endswith("0.50")
    head, _, line = format_markdown(rows).splitlines()
    assert head.startswith("| noise | noisy dB | **photo** dB |")
    assert head.endswith("| bm3d (1 photos) |")
    assert line == "| file, σ 25 | 20.00 | **27.00** | 0.9000 | 67 % | 5.0 % | 20.0 % | -0.50 |"


def test_a_photo_that_is_as_it_should_be_has_no_figure():
    score = _score(MOST_DB, noisy_db=MOST_DB)
    clean = [PhotoScore(trial="clean", denoiser="photo", key="0.png", score=score)]
    assert "| clean | ∞ | **∞** |" in format_markdown([summarise(clean, weights=None, first=clean)])


def test_the_json_holds_every_photo(rows: list[Row]) -> None:
    evaluation = Evaluation(
        photos="s3://photos",
        photos_sha256="b" * 64,
        version="1",
        weights={"photo": "a" * 64},
        rows=rows,
        scores=FIRST,
    )

    values = json.loads(evaluation.as_json(), parse_constant=pytest.fail)

    assert values["rows"][0]["weights"] == values["weights"]["photo"]
    assert [score["psnr_db"] for score in values["scores"]] == [30, 32, 19]
    wins = [score["psnr_db"] > score["noisy_psnr_db"] for score in values["scores"]]
    assert sum(wins) / len(wins) == pytest.approx(values["rows"][0]["win_rate"], abs=1e-4)


def test_the_plot_is_an_svg_that_does_not_change(rows: list[Row]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'evaluate'")
    from pipeline.score_plot import draw_scores

    drawn = draw_scores(rows)

    assert ET.fromstring(drawn).tag.endswith("svg")
    assert draw_scores(rows) == drawn


def test_the_plot_names_denoisers_as_they_are_called() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'evaluate'")
    from pipeline.score_plot import draw_scores

    names = ["photo", "_best", "a_{$5$"]
    drawn = draw_scores([summarise(_scores(name, 30), weights=None, first=FIRST) for name in names])

    assert [name for name in names if f"<!-- {name} -->" not in drawn.decode()] == []
