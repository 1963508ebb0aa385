"""README.md and docs/retrieval.md: their examples, as they stand there, against a real service."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import examples, run_example
from images import encode, photo
from serving import serving

RETRIEVAL = "docs/retrieval.md"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with the files that the examples name, and the address of a service with indices."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "photos").mkdir()
    for seed in range(6):
        (folder / "photos" / f"{seed}.jpg").write_bytes(encode(photo(seed=seed), "JPEG"))
    for name in ("query.jpg", "photo.jpg", "other.jpg"):
        (folder / name).write_bytes((folder / "photos" / "4.jpg").read_bytes())
    with serving(indexes=str(folder / "indexes")) as client:
        yield folder, str(client.base_url).rstrip("/")


def test_clients_of_the_readme(shop: tuple[Path, str]) -> None:
    curl, openai, ours = [run_example(example, *shop) for example in examples("README.md", "Serve it")]
    assert '"shape":[1,64]' in curl
    assert openai == "64 numbers\n"
    assert ours == "(2, 64) (1, 4, 4, 64)\n"


def test_retrieval__and_what_is_in_the_index_goes_to_qdrant(shop: tuple[Path, str]) -> None:
    ((language, text),) = examples(RETRIEVAL, "Put in, find, take out")
    told = run_example((language, text), *shop)
    assert '"count":2,"added":2' in told
    assert '"metadata":{"colour":"blue","price":60}' in told
    assert '"deleted":1' in told
    (moving,) = examples(RETRIEVAL, "What is in an index already")
    assert run_example(moving, *shop) == "1 of 1\n"


@pytest.mark.parametrize("name", ["Qdrant", "LanceDB"])
def test_databases(shop: tuple[Path, str], name: str) -> None:
    (example,) = examples(RETRIEVAL, name)
    lines = run_example(example, *shop).splitlines()
    assert len(lines) == 3
    assert lines[0] == "1.000 photos/4.jpg"
