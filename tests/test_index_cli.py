"""`mcbeit index`: embeddings or images in, an index, answers, files for others."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from images import encode, photo, write_images
from vectors import make_embeddings, save_embeddings

from mcbeit.cli.main import cli

MODEL = ["timm:vit_tiny_patch16_224", "weights=random", "image_size=32"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["index", *map(str, arguments)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embeddings") / "a.npy"
    save_embeddings(make_embeddings(20), path)
    return path


@pytest.fixture(scope="module")
def built(saved: Path) -> Path:
    out = saved.parent / "index"
    assert run("build", saved, "-o", out).exit_code == 0
    return out


@pytest.fixture(scope="module")
def of_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with an index beside it."""
    folder = tmp_path_factory.mktemp("images")
    for kind in ("cat", "dog"):
        write_images(folder / "images" / kind, {f"{seed}.png": encode(photo(seed=seed)) for seed in range(3)})
    model, *options = MODEL
    data = ["data.kind=imagefolder", "data.num_workers=0"]
    result = run("build", model, folder / "images", "-o", folder / "index", *options, *data)
    assert result.exit_code == 0, result.output
    return folder


def test_build__says_what_it_built(saved: Path, tmp_path: Path) -> None:
    result = run("build", saved, "-o", tmp_path / "index", "--kind", "hnsw", "index.links=8")
    assert result.stdout == f"{tmp_path}/index: hnsw, 20 vectors of dim 16, cosine\n"
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["config"]["links"] == 8


def test_build__replaces_only_if_told(saved: Path, tmp_path: Path) -> None:
    assert run("build", saved, "-o", tmp_path / "index").exit_code == 0
    refused = run("build", saved, "-o", tmp_path / "index")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--force" in refused.stderr
    assert run("build", saved, "-o", tmp_path / "index", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["index.linsk=8"], "did you mean 'index.links'"),
        (["pooling=cls"], "is read as a file of embeddings, so pooling=cls has no meaning here"),
        (["b", "c"], "name a file of embeddings, or a model and a source of images; found"),
    ],
)
def test_build__mistakes(saved: Path, tmp_path: Path, words: list[str], told: str) -> None:
    result = run("build", saved, *words, "-o", tmp_path / "index")
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (tmp_path / "index").exists()


def test_search__of_embeddings_in_lines(saved: Path, built: Path) -> None:
    lines = run("search", built, saved, "-k", "2").stdout.splitlines()
    assert len(lines) == 40
    assert lines[0] == "0.png\t1\t1.0000\teven\t0.png"


def test_search__json(saved: Path, built: Path) -> None:
    answers = json.loads(run("search", built, saved, "-k", "3", "--json").stdout)
    assert [answer["query"] for answer in answers] == [f"{number}.png" for number in range(20)]
    assert answers[4]["hits"][0] == {
        "id": "4.png",
        "score": pytest.approx(1),
        "path": "4.png",
        "label": "even",
        "metadata": None,
    }
    assert all(len(answer["hits"]) == 3 for answer in answers)


def test_search__of_several_files(saved: Path, built: Path) -> None:
    assert len(run("search", built, saved, saved, "-k", "1").stdout.splitlines()) == 40


def test_search__a_table_in_a_terminal(saved: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = run("search", built, saved, "-k", "1").stdout
    assert "score" in text
    assert "━" in text


def test_search__of_images(of_images: Path) -> None:
    """The path of each image comes back, with its label; the same picture lies in both classes."""
    model, *options = MODEL
    query = of_images / "images" / "cat" / "1.png"
    result = run("search", of_images / "index", query, "--model", model, *options, "-k", "2", "--json")
    hits = json.loads(result.stdout)[0]["hits"]
    assert {(hit["label"], Path(hit["path"]).name) for hit in hits} == {("cat", "1.png"), ("dog", "1.png")}
    assert [round(hit["score"], 4) for hit in hits] == [1, 1]


def test_search__another_model_is_refused(of_images: Path, saved: Path, built: Path) -> None:
    model, *options = MODEL
    query = of_images / "images" / "cat" / "1.png"
    for result in (
        run("search", of_images / "index", query, "--model", model, *options, "pooling=mean"),
        run("search", of_images / "index", saved),
    ):
        assert (result.exit_code, result.stdout) == (2, "")
        assert "their vectors cannot be compared" in result.stderr


def test_search__mistakes(saved: Path, built: Path, tmp_path: Path) -> None:
    for arguments, told in (
        ([tmp_path, saved], "there is no index at"),
        ([built, "k=3"], "name a query"),
        ([built, saved, "pooling=cls"], "without --model queries are files of embeddings"),
        ([built, tmp_path / "none.npy"], "make it: mcbeit embed"),
    ):
        result = run("search", *arguments)
        assert result.exit_code == 2
        assert told in result.stderr


def test_search__an_image_that_cannot_be_read(of_images: Path, tmp_path: Path) -> None:
    model, *options = MODEL
    (tmp_path / "bad.png").write_bytes(b"no image")
    result = run("search", of_images / "index", tmp_path / "bad.png", "--model", model, *options)
    assert result.exit_code == 2
    assert "bad.png" in result.stderr


def test_export__by_suffix(built: Path, tmp_path: Path) -> None:
    result = run("export", built, "-o", tmp_path / "points.jsonl")
    assert result.stdout == f"{tmp_path}/points.jsonl: 20 vectors of dim 16 for qdrant\n"
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 20


def test_export__by_option(built: Path, tmp_path: Path) -> None:
    assert run("export", built, "-o", tmp_path / "a", "--to", "pgvector", "--table", "photos").exit_code == 0
    assert 'CREATE TABLE "photos"' in (tmp_path / "a").read_text()
    refused = run("export", built, "-o", tmp_path / "a", "--to", "pgvector")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
