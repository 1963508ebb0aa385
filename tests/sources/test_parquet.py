import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards import cut, damage, pictures, write_parquet

from mcbeit.errors import DataError
from mcbeit.sources import ImageSource, open_source, parquet, parquet_table, source_notes


def contents(source: ImageSource) -> list[bytes]:
    return [source.read(i) for i in range(len(source))]


def message(place: object, kind: str = "auto") -> str:
    with pytest.raises(DataError) as error:
        open_source(place, kind)
    return str(error.value)


def write_split(folder: Path, split: str, count: int = 3, each: int = 10) -> list[bytes]:
    """`count` files of `each` images; all images in order."""
    images = list(pictures(count * each).values())
    for i in range(count):
        name = f"{split}-{i:05}-of-{count:05}.parquet"
        write_parquet(folder / "data" / name, images[i * each : (i + 1) * each])
    return images


def test_open_parquet__is_every_row_in_order(tmp_path) -> None:
    images = write_split(tmp_path, "train")
    (tmp_path / "README.md").write_text("A data set.")
    for place in ("", "data", "data/train-*.parquet", "data/train-{00000..00002}-of-00003.parquet"):
        source = open_source(str(tmp_path / place))
        assert contents(source) == images
        assert source.name(13) == str(tmp_path / "data" / "train-00001-of-00003.parquet:3")
        assert source.labels is None
        assert source_notes(source) == []
    order = [29, 0, 10, 9, 17]
    assert [source.read(i) for i in order] == [images[i] for i in order]


def test_open_parquet__is_read_by_many_threads(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet, "CACHE_BYTES", 0)
    images = write_split(tmp_path, "train")
    source = open_source(str(tmp_path))
    order = np.random.default_rng(0).integers(len(images), size=2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, order)) == [images[i] for i in order]


@pytest.mark.parametrize("options", [{"compression": "none"}, {"compression": "zstd"}, {"use_dictionary": False}])
def test_open_parquet__takes_any_compression(options: dict, tmp_path) -> None:
    images = list(pictures(9).values())
    assert contents(open_source(str(write_parquet(tmp_path / "x.parquet", images, **options)))) == images


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_open_parquet__takes_a_column_of_bytes(kind: pa.DataType, tmp_path) -> None:
    table = pa.table({"key": ["a", "b"], "jpg": pa.array([b"1", b"2"], type=kind), "cls": [1, 0]})
    pq.write_table(table, tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert contents(source) == [b"1", b"2"]
    assert source.labels.tolist() == [1, 0]


def test_open_parquet__takes_labels_and_the_names_of_their_classes(tmp_path) -> None:
    path, images = tmp_path / "x.parquet", list(pictures(3).values())
    source = open_source(str(write_parquet(path, images, labels=[2, 0, 2], class_names=["ant", "bee", "zebra"])))
    assert (source.labels.tolist(), source.classes) == ([2, 0, 2], ["ant", "bee", "zebra"])
    source = open_source(str(write_parquet(path, images, labels=["b", "a", "b"])))
    assert (source.labels.tolist(), source.classes) == ([1, 0, 1], ["a", "b"])
    source = open_source(str(write_parquet(path, images, labels=[2, 0, 2])))
    assert (source.labels.tolist(), source.classes) == ([2, 0, 2], ["0", "1", "2"])


def test_open_parquet__labels_of_some_are_labels_of_none(tmp_path) -> None:
    images = list(pictures(3).values())
    source = open_source(str(write_parquet(tmp_path / "x.parquet", images, labels=[2, None, 2])))
    assert source.labels is None
    assert "1 of 3 samples" in source_notes(source)[0]
    source = open_source(str(write_parquet(tmp_path / "test.parquet", images, labels=[-1, -1, -1], class_names=["a"])))
    assert source.labels is None
    assert source_notes(source) == []


def test_open_parquet__refuses_labels_without_a_class_and_classes_named_otherwise(tmp_path) -> None:
    images = list(pictures(2).values())
    write_parquet(tmp_path / "a.parquet", images, labels=[0, 5], class_names=["x", "y"])
    assert "has the label 5; number the classes from 0 on, to at most 1" in message(str(tmp_path / "a.parquet"))
    write_parquet(tmp_path / "a.parquet", images, labels=[0, 1], class_names=["x", "y"])
    write_parquet(tmp_path / "b.parquet", images, labels=[0, 1], class_names=["y", "x"])
    assert "use them as two sources" in message(str(tmp_path))
    joined = open_source([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])
    assert joined.labels.tolist() == [0, 1, 1, 0]


def test_open_parquet__asks_which_split(tmp_path) -> None:
    write_split(tmp_path, "train")
    write_split(tmp_path, "test", count=1)
    told = message(str(tmp_path))
    assert "holds the splits test, train" in told
    assert len(open_source(str(tmp_path / "data" / "train-*.parquet"))) == 30
    assert len(open_source(str(tmp_path / "**" / "*.parquet"))) == 40
    write_parquet(tmp_path / "hub" / "train" / "0000.parquet", [b"1"])
    write_parquet(tmp_path / "hub" / "validation" / "0000.parquet", [b"2"])
    assert f"such as '{tmp_path / 'hub' / 'train'}'" in message(str(tmp_path / "hub"))
    assert len(open_source(str(tmp_path / "hub" / "validation"))) == 1


def test_open_parquet__says_what_column_it_needs(tmp_path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), path)
    assert "no column of images (found text: string, n: int64)" in message(str(path))
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), path)
    assert "several columns of images (a, b)" in message(str(path))
    pq.write_table(pa.table({"a": [b"1"], "image": [b"2"]}), path)
    assert contents(open_source(str(path))) == [b"2"]


def test_read__of_a_row_with_a_path_only_reads_the_file_beside(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"beside")
    paths = ["images/x.png", "images/y.png", None, "ignored.png"]
    source = open_source(str(write_parquet(tmp_path / "x.parquet", [None, None, None, b"inside"], paths=paths)))
    assert source.read(0) == b"beside"
    assert source.read(3) == b"inside"
    with pytest.raises(OSError, match=r"holds no bytes but the path 'images/y\.png', and '.*y\.png' cannot be read"):
        source.read(1)
    with pytest.raises(OSError, match="neither the bytes nor the path"):
        source.read(2)


# damage


def test_open_parquet__leaves_broken_files_out_and_weighs_them(tmp_path) -> None:
    images = write_split(tmp_path, "train", count=4)
    files = sorted((tmp_path / "data").iterdir())
    cut(files[1], 300)
    files[3].write_bytes(b"")
    source = open_source(str(tmp_path))
    assert contents(source) == images[:10] + images[20:30]
    assert [(damage.name, damage.num_lost) for damage in source.damaged] == [(str(files[1]), 10), (str(files[3]), 10)]
    assert "loses about 20 images" in source_notes(source)[0]


def test_read__of_a_broken_row_group_is_an_os_error(tmp_path) -> None:
    images = list(pictures(8).values())
    path = write_parquet(tmp_path / "x.parquet", images, compression="zstd", use_dictionary=False)
    damage(path, 8, 300)
    source = open_source(str(path))
    with pytest.raises(OSError, match="row group 0 cannot be read"):
        source.read(3)
    assert source.read(4) == images[4]


def test_open_parquet__without_any_image_is_an_error(tmp_path) -> None:
    assert "they have no rows" in message(str(write_parquet(tmp_path / "x.parquet", [])))
    (tmp_path / "x.parquet").write_text("no parquet")
    assert message(str(tmp_path / "x.parquet")).startswith("there is no image in 1 parquet files")
    assert "no image source at" in message(str(tmp_path / "nowhere.parquet"))


def test_read__of_a_file_that_changed_is_an_os_error(tmp_path) -> None:
    path = write_parquet(tmp_path / "x.parquet", list(pictures(8).values()))
    source = open_source(str(path))
    parquet_table._open.cache_clear()  # as another process begins
    write_parquet(path, [b"other"] * 20)
    with pytest.raises(OSError, match="has changed since it was opened"):
        source.read(0)


def test_open_parquet__without_pyarrow_says_what_to_install(tmp_path, monkeypatch) -> None:
    path = write_parquet(tmp_path / "x.parquet", [b"1"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "needs pyarrow: pip install 'mcbeit[data]'" in message(str(path))


def test_open_parquet__and_a_folder_of_tars_too_asks_for_the_kind(tmp_path) -> None:
    write_split(tmp_path, "train")
    (tmp_path / "x.tar").write_bytes(b"")
    assert "say which to use with the kind tar or parquet" in message(str(tmp_path))
    assert len(open_source(str(tmp_path), "parquet")) == 30


# reading


def test_read__keeps_few_row_groups(tmp_path, monkeypatch) -> None:
    images = write_split(tmp_path, "train")
    source = open_source(str(tmp_path))
    monkeypatch.setattr(parquet, "CACHE_BYTES", 2 * source._rows(0, 0).num_bytes)
    assert contents(source) == images
    assert len(source._cache) <= 2
    monkeypatch.setattr(parquet, "CACHE_BYTES", 0)
    assert contents(source) == images
    assert len(source._cache) == 1


def test_source_notes__tell_of_large_row_groups(tmp_path, monkeypatch) -> None:
    write_split(tmp_path, "train")
    monkeypatch.setattr(parquet, "LARGE_GROUP", 100)
    (note,) = source_notes(open_source(str(tmp_path)))
    assert "have 3 rows and 0 MB on average" in note


def test_summary__of_parquet_is_that_of_names_and_rows(tmp_path) -> None:
    images = list(pictures(8).values())
    path = write_parquet(tmp_path / "a" / "x.parquet", images)
    before = open_source(str(path)).summary()
    write_parquet(path, images, rows=2)
    assert open_source(str(path)).summary() == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_source(str(tmp_path / "b")).summary() == before
    write_parquet(tmp_path / "b" / "x.parquet", images[:7])
    assert open_source(str(tmp_path / "b")).summary() != before


def test_pickle__holds_no_rows_and_reads_the_same(tmp_path) -> None:
    images = write_split(tmp_path, "train")
    source = open_source(str(tmp_path))
    assert contents(source) == images
    packed = pickle.dumps(source)
    assert len(packed) < 2500
    assert contents(pickle.loads(packed)) == images
