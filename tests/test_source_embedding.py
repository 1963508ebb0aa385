"""Embedding every image of a source."""

from pathlib import Path

import numpy as np
import pytest
from images import encode, photo, write_images

from mcbeit.config import validate
from mcbeit.data import DataConfig
from mcbeit.errors import DataError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.source_embedding import embed_source


def data(source: Path, **changes: object) -> DataConfig:
    return validate(DataConfig, {"source": str(source), "num_workers": 0, **changes})


def test_embed_source__the_vectors_of_the_files(shapes: Path) -> None:
    encoder = FakeEncoder()
    found, unread = embed_source(encoder, data(shapes, kind="imagefolder"))
    assert unread == []
    assert len(found.ids) == 24
    np.testing.assert_array_equal(found.vectors, encoder.embed(found.ids))
    assert found.paths == found.ids
    assert [found.classes[label] for label in found.labels] == [Path(name).parent.name for name in found.ids]
    assert found.spec == encoder.spec


def test_embed_source__more_than_a_batch_by_other_processes(tmp_path: Path) -> None:
    write_images(tmp_path, {f"{seed:02d}.png": encode(photo(16, 16, seed=seed)) for seed in range(40)})
    encoder = FakeEncoder()
    found, _ = embed_source(encoder, data(tmp_path, num_workers=2))
    np.testing.assert_array_equal(found.vectors, encoder.embed(found.ids))
    assert found.labels is None


def test_embed_source__what_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    good = {f"{seed}.png": encode(photo(seed=seed)) for seed in range(3)}
    write_images(tmp_path, {**good, "bad.png": b"no image"})
    found, unread = embed_source(FakeEncoder(), data(tmp_path, max_corrupt_fraction=0.25))
    assert [Path(name).name for name in found.ids] == ["0.png", "1.png", "2.png"]
    assert len(unread) == 1
    assert unread[0].startswith(f"{tmp_path}/bad.png: ")


def test_embed_source__too_many_that_cannot_be_read(tmp_path: Path) -> None:
    write_images(tmp_path, {"good.png": encode(photo()), "bad.png": b"no image"})
    with pytest.raises(DataError, match=r"1 of 2 images cannot be read, more than data\.max_corrupt_fraction=0\.01"):
        embed_source(FakeEncoder(), data(tmp_path))
