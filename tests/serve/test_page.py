"""The page at /demo in a browser: what people do with it, and what it says when something is wrong."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from chromium import Browser, Tab, browser
from images import photo
from PIL import Image
from serving import HeldEncoder, serving

from mcbeit.encoder import unit_length
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.viz.pca import pca_colours

COMPARED = "document.querySelector('#reading').textContent.includes('cosine')"
PICTURE = "document.querySelector('#{}-canvas').toDataURL()"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    """A page that in the end has complained of nothing and asked nobody but the service."""
    with chromium.tab() as found:
        found.look(1280)
        yield found
        here = found.evaluate("location.origin")
        assert found.complaints == []
        assert [address for address in found.requested if not address.startswith((f"{here}/", "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def files(pictures: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures on disk."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / name for name in ("one.png", "two.jpg", "three.webp")]
    for path, data in zip(paths, pictures, strict=True):
        path.write_bytes(data)
    return paths


def text(selector: str) -> str:
    """The expression for what an element says."""
    return f"document.querySelector('{selector}').textContent"


def choose(selector: str, value: str) -> str:
    """The expression that takes one of a list, as a person would."""
    return (
        f"(() => {{ const list = document.querySelector('{selector}'); list.value = '{value}';"
        "list.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )


def address(client: httpx.Client) -> str:
    return f"{str(client.base_url).rstrip('/')}/demo"


def show(tab: Tab, client: httpx.Client, files: list[Path], *, compared: bool = True) -> None:
    """Open the page and give it files; wait until it has made of them what it can."""
    tab.open(address(client))
    tab.wait(text("#facts"))
    tab.choose_files("#files", *files)
    if compared:
        tab.wait(f"{text('#progress')} === '{len(files)}'")
        tab.wait(COMPARED)


def neighbours(tab: Tab) -> list[tuple[str, float]]:
    found = tab.evaluate(
        "[...document.querySelectorAll('#neighbours > li')].map((card) => "
        "[card.querySelector('.name').textContent, Number(card.dataset.score)])"
    )
    return [(name, score) for name, score in found]


def test_samples__neighbours_patches_and_colours(tab: Tab, client: httpx.Client, tmp_path: Path) -> None:
    """What a newcomer does: a click for samples, a click on a patch, a look at the colours."""
    tab.open(address(client))
    tab.click("#samples")
    tab.wait("document.querySelector('#progress').textContent === '12'")
    tab.wait("document.querySelectorAll('#neighbours > li').length === 11")
    tab.wait(COMPARED)
    found = neighbours(tab)
    assert {name for name, _ in found[:2]} == {"coast-2.png", "coast-3.png"}
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert all(-1 <= score <= 1 for score in scores)

    before = tab.evaluate(PICTURE.format("query")), tab.evaluate(PICTURE.format("other"))
    tab.click("#query-canvas", across=0.1, down=0.1)
    tab.wait(f"{text('#reading')}.startsWith('Patch 1, 1 of the query.')")
    heat = tab.evaluate(PICTURE.format("query")), tab.evaluate(PICTURE.format("other"))
    assert heat[0] != before[0]
    assert heat[1] != before[1]

    tab.click("#views label:nth-of-type(2)")
    tab.wait(f"{text('#reading')}.includes('of the variance')")
    colours = tab.evaluate(PICTURE.format("query"))
    tab.click("#views label:nth-of-type(3)")
    tab.wait(f"{text('#reading')}.includes('resolution')")
    assert len({heat[0], colours, tab.evaluate(PICTURE.format("query"))}) == 3

    tab.picture(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1280, 800)
        assert np.asarray(picture).std() > 20


def test_scores__are_the_cosines_of_the_vectors(
    tab: Tab, client: httpx.Client, files: list[Path], vectors: np.ndarray, patch_vectors: np.ndarray
) -> None:
    show(tab, client, files)
    expected = {path.name: float(vectors[0] @ vectors[index]) for index, path in enumerate(files) if index}
    assert dict(neighbours(tab)) == pytest.approx(expected, abs=1e-5)
    best = list(expected).index(max(expected, key=expected.__getitem__)) + 1
    units = unit_length(patch_vectors)
    cosines = units[best] @ units[0, 2 * 4 + 2]  # to the patch in the middle
    told = tab.evaluate(text("#reading")).replace("\u2212", "-")
    row, column = divmod(int(cosines.argmax()), 4)
    assert told == (
        f"Patch 3, 3 of the query. Most alike in the neighbour: {row + 1}, {column + 1}, cosine {cosines.max():.3f}."
    )


def test_colours__as_viz_has_them(tab: Tab, client: httpx.Client) -> None:
    features = FakeEncoder(image_size=128).patch_features([photo(seed=1), photo(seed=2)])
    tab.open(address(client))
    points = features.reshape(-1, features.shape[-1]).tolist()
    found = tab.evaluate(
        "import('/demo/algebra.js').then(({principal, asColours}) => {"
        f"const points = {json.dumps(points)}.map((point) => Float32Array.from(point));"
        "const {coordinates, shares} = principal(points); return [asColours(coordinates), shares]; })"
    )
    expected = pca_colours(features)
    np.testing.assert_allclose(found[1], expected.explained, atol=1e-3)
    np.testing.assert_allclose(np.array(found[0]), expected.colours.reshape(-1, 3), atol=0.02)


def test_keyboard(tab: Tab, client: httpx.Client, files: list[Path]) -> None:
    show(tab, client, files)
    tab.evaluate("document.querySelector('#query-canvas').focus()")
    tab.press("ArrowRight", "ArrowUp")
    tab.wait(f"{text('#reading')}.startsWith('Patch 2, 4 of the query.')")
    tab.press("ArrowRight")  # there is an end
    assert tab.evaluate(text("#reading")).startswith("Patch 2, 4 ")
    tab.press("Tab")
    while tab.evaluate("document.activeElement.id") != "other-canvas":
        tab.press("Tab")
    tab.press("ArrowDown")
    tab.wait(f"{text('#reading')}.startsWith('Patch 4, 3 of the neighbour.')")

    tab.evaluate("document.querySelectorAll('.tile')[1].focus()")
    tab.press("Enter")
    tab.wait("document.querySelector('#query-name').textContent === 'two.jpg'")
    assert tab.evaluate("document.activeElement.title") == "two.jpg"
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab.press("Delete")
    tab.wait("document.querySelectorAll('.tile').length === 2")
    tab.wait("document.activeElement.title === 'three.webp'")


def test_refused__in_the_words_of_the_service_and_the_rest_goes_on(
    tab: Tab, client: httpx.Client, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "large.png").write_bytes(bytes(client.get("/v1/models").json()["data"][0]["max_image_bytes"] + 1))
    show(tab, client, [tmp_path / "notes.txt", *files, tmp_path / "large.png"], compared=False)
    tab.wait("document.querySelectorAll('#refused li').length === 2")
    tab.wait("document.querySelector('#progress').textContent === '3'")
    tab.wait(COMPARED)
    told = tab.evaluate("[...document.querySelectorAll('#refused p')].map((line) => line.textContent)")
    refusal = client.post("/v1/embed", content=b"no image").json()["error"]["message"].removeprefix("input[0]: ")
    assert f"notes.txt {refusal}" in told
    assert "large.png 10 MB are more than the 10 MB allowed for an image" in told
    assert 413 not in tab.refused  # it was not even sent
    tab.click("#refused li:first-child .bare")
    tab.wait("document.querySelectorAll('#refused li').length === 1")


def test_key__is_asked_for_and_kept_in_memory(tab: Tab, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sesame\n")
    with serving(api_keys_file=str(tmp_path / "keys")) as client:
        tab.open(address(client))
        tab.wait("document.querySelector('#settings').open && document.activeElement.id === 'key'")
        tab.choose_files("#files", *files)
        for key in ("wrong", "sesame"):
            tab.wait("document.querySelector('#settings').open")
            tab.evaluate("document.querySelector('#key').value = ''; document.querySelector('#key').focus()")
            tab.type(key)
            tab.press("Enter")
            tab.wait(f"{text('#key-note')}.includes('not know') || document.querySelector('#facts').textContent")
        tab.wait(COMPARED)
        assert not tab.evaluate("document.querySelector('#settings').open")
        assert "$MCBEIT_API_KEY" in tab.evaluate(text("#snippet"))
        assert tab.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert "sesame" not in tab.evaluate("document.body.innerText + location.href")


def test_busy__is_waited_for(tab: Tab, files: list[Path]) -> None:
    encoder = HeldEncoder()
    with serving(encoder, limits={"waiting_items": 1}) as client:
        tab.open(address(client))
        tab.wait(text("#facts"))
        encoder.hold()
        try:
            tab.choose_files("#files", *files)
            tab.wait(f"{text('#status')}.includes('busy')")
        finally:
            encoder.may_go.set()
        tab.wait("document.querySelector('#progress').textContent === '3'")
        tab.wait(COMPARED)
        assert 429 in tab.refused


def test_models__one_is_chosen_of_several(tab: Tab, files: list[Path]) -> None:
    with serving(models=("one=fake", "two=fake")) as client:
        show(tab, client, files)
        assert "model=one" in tab.evaluate(text("#snippet"))
        tab.evaluate(choose("#model", "two"))
        tab.wait(f"{text('#snippet')}.includes('model=two')")
        tab.wait("document.querySelectorAll('#neighbours > li').length === 2")
        tab.wait(COMPARED)
        assert any(asked.endswith("model=two&patches=true") for asked in tab.requested)


def test_model__of_one_patch(tab: Tab, files: list[Path]) -> None:
    """There is nothing to compare within a picture, and nothing breaks."""
    with serving(FakeEncoder(image_size=8)) as client:
        show(tab, client, files)
        for view in (2, 3, 1):
            tab.click(f"#views label:nth-of-type({view})")
        tab.wait(f"{text('#reading')}.startsWith('Patch 1, 1 of the query. Most alike')")


def test_request__its_latency_and_its_code(tab: Tab, client: httpx.Client, files: list[Path]) -> None:
    show(tab, client, files)
    stages = "[...document.querySelectorAll('#bar span')].map((part) => part.dataset.stage)"
    assert {"read", "decode", "encode"} <= set(tab.evaluate(stages))
    tab.click("#again")
    tab.wait("!document.querySelector('#cached').hidden")
    assert {"infer", "queue"} & set(tab.evaluate(stages)) == set()
    whole, *told = tab.evaluate(  # at one moment: the browser's own times come a little later than the answer
        "[...document.querySelectorAll('#round-trip, #legend dd')].map((time) => parseFloat(time.textContent))"
    )
    assert sum(told) == pytest.approx(whole, rel=0.02, abs=0.2)

    curl = tab.evaluate(text("#snippet"))
    assert f"curl '{str(client.base_url).rstrip('/')}/v1/embed?model=fake'" in curl
    assert "--data-binary '@one.png'" in curl
    tab.click("#languages label:nth-of-type(2)")
    code = tab.wait(f"{text('#snippet')}.includes('httpx') && {text('#snippet')}")
    compile(code, "snippet", "exec")
    tab.click("#copy")
    tab.wait(text("#status"))


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_images__dropped_and_pasted(tab: Tab, client: httpx.Client, way: str) -> None:
    event = {
        "drop": "new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true})",
        "paste": "new ClipboardEvent('paste', {clipboardData: files, bubbles: true})",
    }
    tab.open(address(client))
    tab.wait(text("#facts"))
    tab.evaluate(
        "(async () => { const files = new DataTransfer(); const canvas = document.querySelector('#fan canvas');"
        "const blob = await new Promise((resolve) => canvas.toBlob(resolve));"
        "files.items.add(new File([blob], 'given.png', {type: 'image/png'}));"
        f"document.body.dispatchEvent({event[way]}) }})()"
    )
    tab.wait("document.querySelector('#query-name').textContent === 'given.png'")
    tab.wait("document.querySelector('#progress').textContent === '1'")
    tab.wait(f"{text('#neighbours-note')}.includes('another image')")


def test_index__is_searched(tab: Tab, files: list[Path], texts: list[str], tmp_path: Path) -> None:
    """What it holds is shown as text and, if it is a picture within the answer, as a picture; nothing is fetched."""
    with serving(indexes=str(tmp_path / "indexes")) as client:
        assert client.put("/v1/indexes/shop", json={}).is_success
        seen = {"thumbnail": f"data:image/png;base64,{texts[0]}", "price": 3, "bad": "<img src=x>"}
        items = [{"id": "a/1", "image": texts[0], "metadata": seen},
                 {"id": "b", "image": texts[1], "metadata": {"url": "https://elsewhere.test/b.png"}}]  # fmt: skip
        assert client.post("/v1/indexes/shop/items", json={"items": items}).is_success
        show(tab, client, files)
        tab.wait("!document.querySelector('#scope-field').hidden")
        tab.evaluate(choose("#scope", "shop"))
        tab.wait(f"{text('#neighbours-note')} === '2 items of shop'")
        found = neighbours(tab)
        assert [name for name, _ in found] == ["a/1", "b"]
        assert found[0][1] == pytest.approx(1, abs=1e-5)
        tab.wait("document.querySelector('#neighbours img').naturalWidth === 64")
        assert tab.evaluate("document.querySelectorAll('#neighbours img').length") == 1
        assert "<img src=x>" in tab.evaluate(text("#neighbours"))
        client.delete("/v1/indexes/shop")
        tab.evaluate("document.querySelectorAll('.tile')[1].click()")
        tab.wait("document.querySelector('#neighbours-note.error') !== null")
        tab.evaluate(choose("#scope", ""))
        tab.wait("document.querySelectorAll('#neighbours .card canvas').length === 2")


def test_everybody__names_focus_narrow_screens_and_dark(tab: Tab, client: httpx.Client, files: list[Path]) -> None:
    """Every control has a name, the focus is seen, nothing is wider than a phone, and dark is dark."""
    tab.look(390, scheme="dark")
    show(tab, client, files)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground))) < 64
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "combobox", "radio", "slider", "switch", "textbox", "link", "application")
    controls = [node for node in nodes if node.get("role", {}).get("value") in roles and not node.get("ignored")]
    assert len(controls) > 15
    assert [node["role"]["value"] for node in controls if not node.get("name", {}).get("value")] == []
    tab.evaluate("document.querySelector('#query-canvas').focus()")
    tab.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
