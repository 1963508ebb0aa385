"""Files of embeddings: what each format holds, and that it is read back whole or refused."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from mcbeit.embedding_files import check_format, write_embeddings
from mcbeit.embeddings import (
    FORMATS,
    Block,
    Description,
    Embeddings,
    companion,
    companions,
    describe,
    load_embeddings,
)
from mcbeit.errors import EmbeddingError
from mcbeit.fake_encoder import FakeEncoder

IDS = ["a.jpg", 'with "quotes", commas.jpg', "line\nbreak.jpg", "ünï/ç.jpg", "tab\tand space .jpg"]
PATHS = [f"/photos/{name}" for name in IDS]
LABELS = np.array([1, 0, 1, 2, 0], np.int64)


def vectors(*shape: int) -> np.ndarray:
    """Numbers of every size, among them those that need all of their digits."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-20, 20, shape)).astype(np.float32)


def description(rows: int, *row_shape: int, **changes: Any) -> Description:
    told = {
        "what": "embedding",
        "num_rows": rows,
        "row_shape": row_shape,
        "spec": FakeEncoder(dim=row_shape[-1]).spec,
        "place": "/photos",
        "source": {"images": rows, "names_sha256": "0"},
        "num_unreadable": 0,
        "unreadable": "drop",
        "classes": None,
    }
    return Description(**{**told, **changes})


def blocks(rows: np.ndarray, labels: np.ndarray | None = None, is_there: np.ndarray | None = None) -> list[Block]:
    """Two of them, of three rows and of what remains."""
    there = np.ones(len(rows), bool) if is_there is None else is_there
    cuts = [slice(0, 3), slice(3, len(rows))]
    return [Block(IDS[c], PATHS[c], None if labels is None else labels[c], rows[c], there[c]) for c in cuts]


def write(path: Path, *, labelled: bool = False) -> np.ndarray:
    rows = vectors(5, 7)
    classes = ["x", "y", "z"] if labelled else None
    write_embeddings(path, description(5, 7, classes=classes), blocks(rows, LABELS if labelled else None))
    return rows


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("labelled", [False, True])
def test_load_embeddings__gives_back_every_bit(suffix: str, labelled: bool, tmp_path: Path) -> None:
    rows = write(tmp_path / f"e{suffix}", labelled=labelled)
    found = load_embeddings(tmp_path / f"e{suffix}")
    assert isinstance(found, Embeddings)
    np.testing.assert_array_equal(found.vectors, rows)
    assert found.vectors.dtype == np.float32
    assert (found.ids, found.paths) == (IDS, PATHS)
    assert found.spec == FakeEncoder(dim=7).spec
    assert found.classes == (["x", "y", "z"] if labelled else None)
    assert (found.labels is None) is not labelled
    if found.labels is not None:
        np.testing.assert_array_equal(found.labels, LABELS)


@pytest.mark.parametrize("suffix", FORMATS)
def test_load_embeddings__rows_of_images_that_cannot_be_read_are_nan(suffix: str, tmp_path: Path) -> None:
    rows, is_there = vectors(5, 7), np.array([True, False, True, True, False])
    rows[~is_there] = np.nan
    about = description(5, 7, num_unreadable=2, unreadable="empty")
    write_embeddings(tmp_path / f"e{suffix}", about, blocks(rows, is_there=is_there))
    np.testing.assert_array_equal(load_embeddings(tmp_path / f"e{suffix}").vectors, rows)


def test_npy__is_read_and_mapped_by_numpy_alone(tmp_path: Path) -> None:
    rows = write(tmp_path / "e.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), rows)
    assert isinstance(load_embeddings(tmp_path / "e.npy").vectors, np.memmap)
    with companion(tmp_path / "e.npy", ".ids.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["id", "path"], *map(list, zip(IDS, PATHS, strict=True))]
    assert json.loads(companion(tmp_path / "e.npy", ".json").read_text())["spec"]["name"] == "fake"


def test_safetensors__is_read_by_its_library_alone(tmp_path: Path) -> None:
    rows = write(tmp_path / "e.safetensors")
    with safe_open(tmp_path / "e.safetensors", framework="numpy") as file:
        assert list(file.keys()) == ["embeddings"]
        np.testing.assert_array_equal(file.get_tensor("embeddings"), rows)
        assert json.loads(file.metadata()["mcbeit"])["num_rows"] == 5


def test_parquet__is_a_table_with_lists_of_fixed_size(tmp_path: Path) -> None:
    rows = write(tmp_path / "e.parquet", labelled=True)
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["id", "path", "label", "embedding"]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[7]"
    assert table.column("embedding").to_pylist() == rows.tolist()
    assert table.column("label").to_pylist() == LABELS.tolist()
    assert json.loads(table.schema.metadata[b"mcbeit"])["spec"]["fingerprint"] == FakeEncoder(dim=7).spec.fingerprint


def test_parquet__images_without_a_vector_are_null(tmp_path: Path) -> None:
    is_there = np.array([True, False, True, True, False])
    about = description(5, 7, num_unreadable=2, unreadable="empty")
    write_embeddings(tmp_path / "e.parquet", about, blocks(vectors(5, 7), is_there=is_there))
    assert pq.read_table(tmp_path / "e.parquet").column("embedding").is_valid().to_pylist() == is_there.tolist()


def test_csv__has_a_header_and_a_column_per_number(tmp_path: Path) -> None:
    write(tmp_path / "e.csv", labelled=True)
    with (tmp_path / "e.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "path", "label", "v0", "v1", "v2", "v3", "v4", "v5", "v6"]
    assert rows[2][:3] == [IDS[1], PATHS[1], "0"]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_write_embeddings__patch_features_keep_their_grid(suffix: str, tmp_path: Path) -> None:
    path, rows = tmp_path / f"p{suffix}", vectors(5, 2, 3, 4)
    write_embeddings(path, description(5, 2, 3, 4, what="patch features"), blocks(rows))
    found = describe(path)
    assert (found.what, found.row_shape) == ("patch features", (2, 3, 4))
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(path), rows)
    elif suffix == ".parquet":
        flat = pq.read_table(path).column("embedding").to_pylist()
        np.testing.assert_array_equal(np.array(flat, np.float32).reshape(rows.shape), rows)
    with pytest.raises(EmbeddingError, match="holds patch features, one vector per patch; make embeddings"):
        load_embeddings(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_write_embeddings__what_is_not_finished_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    def failing() -> Any:
        yield blocks(vectors(5, 7))[0]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_embeddings(tmp_path / f"e{suffix}", description(5, 7), failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "what", "message"),
    [
        ("e.txt", "embedding", r"'e\.txt': embeddings are written as \.npy, \.parquet, \.csv, \.safetensors; end the"),
        ("e", "embedding", "end the name of -o in one"),
        ("e.csv", "patch features", r"a table of text cannot hold patch features; use \.npy"),
    ],
)
def test_check_format__refuses_a_name_that_cannot_hold_it(name: str, what: str, message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        check_format(Path(name), what)


@pytest.mark.parametrize("suffix", FORMATS)
def test_load_embeddings__a_missing_file_says_how_to_make_it(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"e{suffix}"
    with pytest.raises(EmbeddingError, match=r"there is no '.*e\..*'; make it: mcbeit embed MODEL SOURCE -o"):
        load_embeddings(path)
    write(path)
    for file in companions(path):
        text = file.read_bytes()
        file.unlink()
        with pytest.raises(EmbeddingError, match="cannot be used without it"):
            load_embeddings(path)
        file.write_bytes(text)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.9])
def test_load_embeddings__a_cut_file_is_refused(suffix: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / f"e{suffix}"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(EmbeddingError, match=r"e\.\w+' "):
        load_embeddings(path)


def test_load_embeddings__files_of_others_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.zeros((2, 3), np.float32))
    companion(tmp_path / "e.npy", ".json").write_text('{"kind": "something else"}')
    companion(tmp_path / "e.npy", ".ids.csv").write_text("id,path\n")
    with pytest.raises(EmbeddingError, match=r"was not written by mcbeit embed, or is damaged: its description is"):
        load_embeddings(tmp_path / "e.npy")
    with pytest.raises(EmbeddingError, match="is no file of embeddings; those end in"):
        load_embeddings(tmp_path / "e.txt")


def test_load_embeddings__names_of_another_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "e.npy")
    names = companion(tmp_path / "e.npy", ".ids.csv")
    names.write_text(names.read_text() + "one,too many\n")
    with pytest.raises(EmbeddingError, match="has 5 vectors and 6 names of images, and should have 5 of both"):
        load_embeddings(tmp_path / "e.npy")
