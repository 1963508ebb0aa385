"""`mcbeit viz` and its drawings: what is written, and what stands on the pages."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from images import encode, photo, write_images
from PIL import Image

from mcbeit.cli.main import cli
from mcbeit.embeddings import Embeddings
from mcbeit.errors import DataError, ImageError, PictureError, VectorIndexError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.index import Index, build_index
from mcbeit.viz import draw_neighbours, draw_pca, draw_similarity, find_images, spread
from mcbeit.viz.neighbours import Among, InIndex

HOSTILE = "<script>alert('x')</script>&.png".replace("/", "_")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    files = {f"{seed}.png": encode(photo(64, 64, seed=seed)) for seed in range(3)}
    return [str(path) for path in write_images(tmp_path / "images", {**files, HOSTILE: files["0.png"]})]


class Elements(HTMLParser):
    """Every element of a page with its attributes, and whether all that were opened are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(page: Path, *, images: int) -> str:
    """A page is well-formed, holds its pictures, says what each shows, and asks no network; its text."""
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    assert elements.open == []
    pictures = [attributes for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) == images
    assert all((one["src"] or "").startswith("data:image/") and one["alt"] for one in pictures)
    assert "script" not in {tag for tag, _ in elements.found}
    assert re.findall(r"https?://|url\(", text) == []
    assert "prefers-color-scheme: dark" in text
    return text


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_draw_pca(paths: list[str], tmp_path: Path) -> None:
    page = draw_pca(FakeEncoder(), paths, tmp_path / "out")
    text = check_page(page, images=8)
    assert "&lt;script&gt;" in text
    assert "4 x 4 patches of dim 64" in text
    assert written(tmp_path / "out") == ["pca", "pca.html", "pca.png"]
    assert written(tmp_path / "out" / "pca")[:3] == ["01-0.png", "02-1.png", "03-2.png"]
    with Image.open(tmp_path / "out" / "pca" / "01-0.png") as one, Image.open(tmp_path / "out" / "pca.png") as sheet:
        assert one.mode == "RGBA"
        assert sheet.width > 4 * one.width
        assert sheet.height > 2 * one.height


def test_draw_pca__foreground_is_told(paths: list[str], tmp_path: Path) -> None:
    page = draw_pca(FakeEncoder(), paths, tmp_path, foreground="auto", upsample="nearest")
    assert "foreground=auto" in page.read_text(encoding="utf-8")
    with Image.open(tmp_path / "pca" / "01-0.png") as one:
        assert set(np.unique(np.asarray(one)[..., 3])) == {0, 255}


def test_draw_pca__like_images_have_like_colours(paths: list[str], tmp_path: Path) -> None:
    draw_pca(FakeEncoder(), paths, tmp_path)
    first, copy = sorted((tmp_path / "pca").iterdir())[0], sorted((tmp_path / "pca").iterdir())[3]
    assert first.read_bytes() == copy.read_bytes()


def test_draw_similarity(paths: list[str], tmp_path: Path) -> None:
    page = draw_similarity(FakeEncoder(), paths, tmp_path, places=[(0.1, 0.1), (0.9, 0.5)])
    text = check_page(page, images=2 * (1 + 4 + 1))
    assert "patch at 0.9, 0.5" in text
    assert "most alike elsewhere" in text
    assert "most alike: 1.00" in text  # the fourth image is a copy of the first
    assert written(tmp_path / "similarity") == ["01", "02"]
    assert len(written(tmp_path / "similarity" / "02")) == 4


def test_draw_neighbours__among_the_images(paths: list[str], tmp_path: Path) -> None:
    page = draw_neighbours(FakeEncoder(), paths, tmp_path, Among(2))
    text = check_page(page, images=4 * 3)
    assert "1.000" in text
    assert "the images of this page" in text
    assert len(written(tmp_path / "neighbours")) == 4


def test_draw_neighbours__in_an_index(paths: list[str], tmp_path: Path) -> None:
    encoder = FakeEncoder()
    labels = ["zero-zero", "one", "two", "three"]
    build_index(Embeddings(paths, paths, encoder.embed(paths), encoder.spec, np.arange(4), labels), tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        found = InIndex(index, 3).of(encoder, paths[1:2])[0]
        assert paths[1] not in {near.path for near in found}
        assert len(found) == 3
        page = draw_neighbours(encoder, paths[1:2], tmp_path / "out", InIndex(index, 3))
    text = check_page(page, images=4)
    assert "zero-zero" in text
    assert "the 4 images of" in text


def test_draw_neighbours__images_that_are_no_files_here(paths: list[str], tmp_path: Path) -> None:
    """Those of tar shards, for example, or of another machine."""
    encoder = FakeEncoder()
    names = [f"shard.tar/{number}.png" for number in range(4)]
    build_index(Embeddings(names, names, encoder.embed(paths), encoder.spec), tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        page = draw_neighbours(encoder, paths[:1], tmp_path / "out", InIndex(index, 2))
    assert "0.png" in check_page(page, images=3)


def test_draw_neighbours__an_index_of_another_model(paths: list[str], tmp_path: Path) -> None:
    encoder = FakeEncoder()
    build_index(Embeddings(paths, paths, encoder.embed(paths), encoder.spec), tmp_path / "index")
    with Index.open(tmp_path / "index") as index, pytest.raises(VectorIndexError, match="cannot be compared"):
        draw_neighbours(FakeEncoder(image_size=32), paths, tmp_path / "out", InIndex(index, 2))


def test_draw_neighbours__one_image_alone(paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="one image has no neighbours; name several, or an index"):
        draw_neighbours(FakeEncoder(), paths[:1], tmp_path / "out", Among(2))


def test_draw__an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.png"):
        draw_pca(FakeEncoder(), [str(tmp_path / "bad.png")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_find_images__files_and_folders(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "images" / "notes.txt").touch()
    assert find_images([paths[2], str(tmp_path / "images")]) == [paths[2], *sorted(paths)]


def test_spread__over_what_there_is() -> None:
    names = [str(number) for number in range(100)]
    assert spread(names, 4) == ["0", "33", "66", "99"]
    assert spread(names, 1) == ["0"]
    assert spread(names[:3], 4) == names[:3]


def test_find_images__mistakes(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"there is no image or folder 'none\.png'"):
        find_images(["none.png"])
    with pytest.raises(PictureError, match="name images"):
        find_images([])
    with pytest.raises(DataError, match="there is no image below"):
        find_images([str(tmp_path)])


def run(*arguments: str | Path) -> Result:
    model = ["--model", "timm:vit_tiny_patch16_224", "weights=random", "image_size=48"]
    return CliRunner().invoke(cli, ["viz", *map(str, arguments), *model])


def test_command__each_drawing_prints_its_page(paths: list[str], tmp_path: Path) -> None:
    for arguments in (
        ["pca", "--foreground", "auto", "--upsample", "nearest"],
        ["similarity", "--at", "0.2,0.8"],
        ["neighbours", "-k", "1"],
    ):
        result = run(*arguments, tmp_path / "images", "-o", tmp_path / "out", "--limit", "3")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{tmp_path}/out/{arguments[0]}.html\n"
        assert "drawing 3 of 4 images" in result.stderr
        assert "vit_tiny_patch16_224" in (tmp_path / "out" / f"{arguments[0]}.html").read_text(encoding="utf-8")


def test_command__neighbours_in_an_index(paths: list[str], tmp_path: Path) -> None:
    model = ["timm:vit_tiny_patch16_224", "weights=random", "image_size=48"]
    arguments = ["index", "build", model[0], str(tmp_path / "images"), "-o", str(tmp_path / "index"), *model[1:]]
    assert CliRunner().invoke(cli, [*arguments, "data.num_workers=0"]).exit_code == 0
    result = run("neighbours", paths[0], "-o", tmp_path / "out", "--index", tmp_path / "index", "-k", "2")
    assert result.exit_code == 0, result.output
    assert "the 4 images of" in (tmp_path / "out" / "neighbours.html").read_text(encoding="utf-8")


def test_command__mistakes(paths: list[str], tmp_path: Path) -> None:
    for arguments, told in (
        (["similarity", paths[0], "--at", "9,9"], "is no place in an image"),
        (["pca", tmp_path / "none.png"], "there is no image or folder"),
        (["neighbours", paths[0], "--index", tmp_path], "there is no index at"),
        (["pca", paths[0], "pooling=max"], "pooling"),
    ):
        result = run(*arguments, "-o", tmp_path / "out")
        assert (result.exit_code, result.stdout) == (2, "")
        assert told in result.stderr
    assert not (tmp_path / "out").exists()
