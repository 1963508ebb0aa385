"""What is sent of the page at /demo: its files and no others, with headers that let nothing else in."""

import re
from pathlib import Path

import httpx
import pytest

import mcbeit.serve
from mcbeit.serve.contracts.page import SHOWN

FOLDER = Path(mcbeit.serve.__file__).parent / "page"
SCRIPTS = [name for name in SHOWN if name.endswith(".js")]


@pytest.mark.parametrize("name", SHOWN)
def test_files__headers(client: httpx.Client, name: str) -> None:
    answer = client.get("/demo" if name == "index.html" else f"/demo/{name}")
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self' blob: data:",
        "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


def test_files__are_asked_after_and_not_sent_twice(client: httpx.Client) -> None:
    etag = client.get("/demo").headers["etag"]
    for told in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = client.get("/demo", headers={"if-none-match": told})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert client.get("/demo", headers={"if-none-match": '"other"'}).status_code == 200
    assert client.get("/demo/page.js").headers["etag"] != etag


@pytest.mark.parametrize(
    "path", ["app.py", "..%2fapp.py", "%2e%2e/app.py", "..%2f..%2fpyproject.toml", "page", "PAGE.JS", "page.js%00", ""]
)
def test_files__no_others(client: httpx.Client, path: str) -> None:
    assert client.get(f"/demo/{path}").status_code == 404


def test_start__leads_to_the_page(client: httpx.Client) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "demo")
    assert client.get("/", follow_redirects=True).text == (FOLDER / "index.html").read_text(encoding="utf-8")


def test_folder__holds_what_is_shown() -> None:
    """A file that is not listed would be missing in the browser; the wheel's are counted in test_packaging."""
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(SHOWN)


def test_folder__nothing_within_the_page_and_nothing_from_elsewhere() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|<script(?! type=\"module\" src=)|\sstyle=|\son\w+=", page) == []
    for name in SHOWN:
        text = (FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|\beval\b", text) == [], name


def test_folder__names_fit() -> None:
    """Scripts import files that are shown and speak of elements that are there."""
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([\w-]+)"', page)
    assert len(ids) == len(set(ids))
    for name in SCRIPTS:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert set(re.findall(r'from "\./([\w.]+)"', text)) <= set(SHOWN)
        assert set(re.findall(r'byId\("([\w-]+)"\)', text)) <= set(ids), name
    assert set(re.findall(r'(?:for|aria-labelledby|aria-describedby)="([\w-]+)"', page)) <= set(ids)
