"""Signed links: anybody's browser gets the one object at them, for as long as was said, and learns no secret."""

import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import fsspec
import pytest
from loop import Loop
from photos import saved, scene
from seaweed import Seaweed

from pipeline.ingest import IngestJob, run_ingest
from pipeline.report import ReportJob, run_report
from pipeline.storage import open_store

HTML = "text/html; charset=utf-8"


def get(link: str) -> tuple[str, bytes]:
    """What a browser is given: type and content."""
    with urllib.request.urlopen(link, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read()


def status_of(link: str) -> int:
    try:
        get(link)
    except HTTPError as error:
        error.close()
        return error.code
    return 200


def test_the_page_of_a_report_in_a_bucket_opens_by_its_link(
    seaweed_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Loop.instead_of_cluster(monkeypatch)
    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    target, page = f"{seaweed_url}/target", f"{seaweed_url}/a night's (2).html"
    run_ingest(IngestJob(source=str(tmp_path), target=target), lambda _: None)

    facts = run_report(ReportJob(target=target, output=page, link_s=60))

    kind, content = get(facts["link"])
    assert (kind, len(content)) == (HTML, facts["bytes"])
    assert content.startswith(b"<!doctype html>")
    assert "link" not in run_report(ReportJob(target=target, output=page))
    assert "link" not in run_report(ReportJob(target=target, output=str(tmp_path / "page.html"), link_s=60))


@pytest.mark.parametrize("server", ["s3", "seaweed", "gs", "az"])
def test_an_object_has_the_type_that_it_was_written_with(server: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{server}_url")
    open_store(url).write("page.html", b"<p>", content_type=HTML)

    filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    found = filesystem.info(f"{root}/page.html")

    settings = found.get("content_settings") or {}
    assert (found.get("ContentType") or found.get("contentType") or settings.get("content_type")) == HTML


def test_a_link_leads_to_where_browsers_reach_the_server(seaweed_url: str, seaweed_server: Seaweed) -> None:
    store = open_store(seaweed_url)
    store.write("a page.html", b"<p>")
    endpoint = f"http://localhost:{seaweed_server.port}"  # we know it as 127.0.0.1

    link = store.link("a page.html", expires_s=60, content_type=HTML, endpoint=endpoint)

    assert link.startswith(f"{endpoint}/")
    assert get(link) == (HTML, b"<p>")


def test_after_its_time_a_link_is_refused(seaweed_url: str) -> None:
    store = open_store(seaweed_url)
    store.write("page.html", b"<p>")
    link = store.link("page.html", expires_s=2, content_type=HTML)

    deadline_s = time.monotonic() + 60
    while status_of(link) == 200:
        assert time.monotonic() < deadline_s

    assert status_of(link) == 403
    assert status_of(store.link("page.html", expires_s=60, content_type=HTML)) == 200


def test_a_link_opens_nothing_but_its_object_and_tells_no_secret(seaweed_url: str, seaweed_server: Seaweed) -> None:
    store = open_store(seaweed_url)
    for key in ("page.html", "other.html"):
        store.write(key, b"<p>")

    link = store.link("page.html", expires_s=60, content_type=HTML)

    assert status_of(link) == 200
    assert status_of(link.replace("page.html", "other.html")) == 403
    assert status_of(link.replace("Expires=60", "Expires=6000")) == 403
    assert status_of(link.partition("?")[0]) == 403
    assert seaweed_server.environment["AWS_SECRET_ACCESS_KEY"] not in link


def test_nobody_signs_without_credentials(seaweed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})

    assert open_store(seaweed_url).link("page.html", expires_s=60, content_type=HTML) is None


@pytest.mark.parametrize("root", ["memory://links", "/nowhere"])
def test_other_stores_give_no_link(root: str) -> None:
    assert open_store(root).link("page.html", expires_s=60, content_type=HTML) is None


@pytest.mark.parametrize("endpoint", ["photos.example", "ftp://photos.example", "https://a:b@photos.example", ""])
def test_where_browsers_reach_a_server_is_a_web_address_without_credentials(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"link_endpoint is .*: expected http://host:port"):
        ReportJob(target="a", output="a.html", link_s=60, link_endpoint=endpoint)


@pytest.mark.parametrize("link_s", [0, -1, 604_801])
def test_a_link_is_asked_for_a_week_at_most(link_s: int) -> None:
    with pytest.raises(ValueError, match=r"expected 1 to 604,800 seconds, a week"):
        ReportJob(target="a", output="a.html", link_s=link_s)
