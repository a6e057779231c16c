"""The Prefect UI as a person uses it, in a real Chromium: the form of `denoise`, its progress, its pictures.

With DEGRAIN_SCREENSHOTS set to a folder, those of the README are written there.
"""

import io
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from stack import Stack, wait_until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.flows,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture
def page(up: Stack) -> Iterator["sync_api.Page"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, base_url=up.ui)
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def test_a_person_fills_in_the_form_and_sees_progress_and_pictures(up: Stack, page: "sync_api.Page") -> None:
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))
    deployment = up.api("GET", "/deployments/name/denoise/degrain")["id"]
    page.goto(f"/deployments/deployment/{deployment}/run")
    page.get_by_text("It is only read.").wait_for()  # the description of a field
    source, target = page.locator("textarea").nth(0), page.locator("textarea").nth(1)
    assert source.input_value() == "s3://photos/noisy"
    place = f"s3://photos/clean-{uuid.uuid4().hex[:4]}"
    target.fill(place)
    take(page, "form")

    page.get_by_role("button", name="Submit").click()
    page.get_by_text("View run").first.dispatch_event("click")  # it is on a note that moves, and soon goes
    page.get_by_text(f"denoise s3://photos/noisy → {place}").first.wait_for()
    run_id = page.url.rpartition("/")[2].partition("?")[0]
    wait_until(lambda: "denoise-progress" in up.artifacts(run_id), 120)
    page.goto(f"/artifacts/artifact/{up.artifacts(run_id)['denoise-progress']['id']}")
    page.get_by_text(" of 16").first.wait_for()

    assert up.wait(run_id)["state_type"] == "COMPLETED"
    page.goto(f"/runs/flow-run/{run_id}")
    page.get_by_text("Completed").first.wait_for()
    take(page, "run")
    page.goto(f"/artifacts/artifact/{up.artifacts(run_id)['denoise-before-after']['id']}")
    pictures = page.locator("img[src^='data:image/jpeg']")
    pictures.first.wait_for()
    wait_until(lambda: bool(pictures.first.evaluate("picture => picture.naturalWidth > 600")), 30)
    take(page, "pictures")
    assert pictures.count() == 4
    assert {urlsplit(url).netloc for url in asked} - {""} == {urlsplit(up.ui).netloc}  # and nobody else


def take(page: "sync_api.Page", name: str) -> None:
    """A screenshot for the README, if one is asked for."""
    if folder := os.environ.get("DEGRAIN_SCREENSHOTS"):
        page.wait_for_timeout(1500)  # it is drawn with animations
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        picture.save(Path(folder) / f"ui-{name}.jpg", quality=85, optimize=True)
