"""The page of `degrain report` in a real Chromium: with a mouse, a keyboard, a finger, on a phone and on paper."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loop import Loop
from photos import saved, scene
from PIL import Image

from pipeline.jobs import DenoiseJob, run_denoise
from pipeline.report import ReportJob, run_report

HOSTILE = '<script>window.isHacked = 1<"onerror="window.isHacked = 1">&amp;.png'
SHOWN = 5  # of six photos: those that are in one of the groups at least
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the report on six photos, of which one is rotated and one has a hostile name, and on what is no photo."""
    folder = tmp_path_factory.mktemp("report")
    source = folder / "source"
    source.mkdir()
    for number in range(4):
        photo = Image.fromarray(scene(sigma=8 + 6 * number, side_px=360, seed=number)).resize((540, 360))
        (source / f"{number}.jpg").write_bytes(saved(photo, "JPEG", quality=92))
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    (source / "upright.jpg").write_bytes(saved(photo, "JPEG", quality=92, exif=exif))
    (source / HOSTILE).write_bytes(saved(scene(side_px=200), "PNG"))
    (source / f"rejected {HOSTILE}").write_bytes(b"")
    with pytest.MonkeyPatch.context() as monkeypatch:
        Loop.instead_of_cluster(monkeypatch)
        run_denoise(DenoiseJob(source=str(source), target=str(folder / "target")), lambda _: None)
    run_report(ReportJob(target=str(folder / "target"), output=str(folder / "report.html")))
    return f"file://{folder}/report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, page_url: str) -> Iterator[Open]:
    """Opens the page, with no network, in a window of its own; nothing may be asked for or complained of meanwhile."""
    contexts, heard = [], []

    def open_it(width: int = 1280, height: int = 900, **options: object) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on(
            "request", lambda request: heard.append(request.url) if request.url[:5] not in ("data:", "file:") else None
        )
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.goto(page_url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert [each for each in heard if not each.startswith(("data:", "file:"))] == []


def splits(page: Any) -> list[str]:
    """Where the pictures of the first photo that is shown are divided, by what is drawn."""
    script = """card => [...card.querySelectorAll(".compare")].map(each => {
        const box = each.getBoundingClientRect(), line = each.querySelector(".handle").getBoundingClientRect();
        return Math.round(100 * (line.left + line.width / 2 - box.left) / box.width);
    })"""
    return page.locator(".photo:visible").first.evaluate(script)


def slider(page: Any) -> Any:
    return page.locator(".photo:visible input").first


def ground(page: Any) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_folders_stand_from_left_to_right_and_names_end_with_their_extension_in_any_script(open_page: Open) -> None:
    directions = open_page().locator(".key bdi, .path bdi").evaluate_all("all => all.map(each => each.dir)")

    assert set(directions) == {"ltr"}


def test_facts_beside_narrow_pictures_are_in_whole_words(open_page: Open) -> None:
    card = open_page().locator(".photo:visible").first
    card.evaluate("""card => {
        for (const picture of card.querySelectorAll(".compare img")) picture.style.width = "200px";
        card.querySelector(".facts dd").textContent = "NIKON CORPORATION NIKON D850";
    }""")

    assert card.locator(".facts dd").first.bounding_box()["height"] < 30  # one line of it


def test_a_mouse_moves_both_pictures_of_a_photo(open_page: Open) -> None:
    page = open_page()
    slider(page).scroll_into_view_if_needed()
    box = slider(page).bounding_box()
    assert splits(page) == [50, 50]

    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 60)
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"], box["y"] + 60)

    assert splits(page) == [25, 25]


def test_a_keyboard_reaches_a_slider_and_moves_it(open_page: Open) -> None:
    page = open_page()
    page.locator('[data-group="all"]').focus()

    page.keyboard.press("Tab")
    for _ in range(3):
        page.keyboard.press("ArrowRight")

    assert splits(page) == [53, 53]
    assert slider(page).get_attribute("aria-valuetext") == "53 % before, 47 % after"
    page.keyboard.press("Home")
    assert splits(page) == [0, 0]


def test_a_finger_moves_it_too(open_page: Open) -> None:
    page = open_page(390, 844, has_touch=True, is_mobile=True)
    slider(page).scroll_into_view_if_needed()
    box = slider(page).bounding_box()

    page.touchscreen.tap(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)

    assert 76 <= splits(page)[0] <= 84


def test_the_sliders_of_a_photo_that_is_a_mere_line_can_be_seen(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/line.png").write_bytes(saved(scene(side_px=900)[:3], "PNG"))
    run_denoise(DenoiseJob(source=str(tmp_path / "source"), target=str(tmp_path / "target")), lambda _: None)
    run_report(ReportJob(target=str(tmp_path / "target"), output=str(tmp_path / "report.html")))
    page = browser.new_page(viewport={"width": 390, "height": 844})

    page.goto(f"file://{tmp_path}/report.html")

    boxes = [box.bounding_box() for box in page.locator(".compare").all()]
    page.close()
    assert len(boxes) == 2
    assert min(box[side] for box in boxes for side in ("width", "height")) >= 24


def test_every_slider_has_a_name_of_its_own(open_page: Open) -> None:
    names = open_page().locator('input[type="range"]').evaluate_all("all => all.map(each => each.ariaLabel)")

    assert len(names) == len(set(names)) == 2 * SHOWN
    assert {"whole, before and after: 3.jpg", "detail, before and after: 3.jpg"} < set(names)


def test_the_theme_is_that_of_the_system_until_another_is_asked_for(open_page: Open) -> None:
    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    grounds = [ground(light), ground(dark)]
    assert grounds[0] != grounds[1]

    for _ in range(2):
        light.locator("#theme").click()
    dark.locator("#theme").click()

    assert [ground(light), ground(dark)] == grounds[::-1]
    light.reload()
    assert ground(light) == grounds[1]


def test_no_window_is_too_narrow(open_page: Open) -> None:
    page = open_page()
    page.locator('[data-group="all"]').click()

    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_hostile_name_is_read_and_not_run(open_page: Open) -> None:
    page = open_page()

    assert page.evaluate("window.isHacked") is None
    assert page.locator("script").count() == 1
    assert page.locator(".photo .key").filter(has_text=HOSTILE).count() == 1
    assert page.locator(".refused .key").inner_text() == f"rejected {HOSTILE}"


def test_nothing_runs_that_the_page_does_not_bring(open_page: Open, browser: Any, page_url: str) -> None:
    page = browser.new_page()
    page.goto(page_url)

    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.isHacked = 1";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.isHacked = 1">');
        }"""
    )
    page.wait_for_function("document.images[document.images.length - 1].complete")

    assert page.evaluate("window.isHacked") is None
    page.close()


def test_groups_show_the_photos_that_belong_to_them_in_their_order(open_page: Open) -> None:
    page = open_page()
    shown = page.locator(".photo:visible .key")

    page.locator('[data-group="noisiest"]').click()
    noisiest = shown.all_inner_texts()
    page.locator('[data-group="all"]').click()

    assert noisiest[0] == HOSTILE  # the smallest photo with the same noise as another
    assert (len(noisiest), shown.count()) == (4, SHOWN)
    assert page.locator('[aria-pressed="true"]').all_inner_texts() == ["All"]


def test_without_scripts_every_photo_is_there(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)

    assert page.locator(".photo:visible").count() == SHOWN
    assert page.locator("button:visible").count() == 0


def test_a_printer_gets_every_photo(open_page: Open) -> None:
    page = open_page()

    page.emulate_media(media="print")

    assert page.locator(".photo:visible").count() == SHOWN
    assert ground(page) == "rgb(255, 255, 255)"


def test_a_photo_stands_upright_and_its_detail_is_shown_pixel_by_pixel(open_page: Open) -> None:
    page = open_page()
    page.locator('[data-group="all"]').click()
    card = page.locator(".photo").filter(has_text="upright.jpg")

    whole, detail = (card.locator(f".{kind} img").first.bounding_box() for kind in ("whole", "detail"))

    assert whole["height"] > whole["width"]
    assert (detail["width"], detail["height"]) == (360, 420)
    assert card.locator("img").evaluate_all("all => all.every(each => each.complete && each.naturalWidth > 0)")
