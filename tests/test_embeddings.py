"""Files of embeddings."""

from pathlib import Path

import numpy as np
import pytest
from vectors import make_embeddings

from mcbeit.embeddings import load_embeddings, save_embeddings
from mcbeit.errors import EncoderError


def test_load_embeddings__gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = make_embeddings(5)
    save_embeddings(saved, tmp_path / "a.npy")
    found = load_embeddings(tmp_path / "a.npy")
    assert (found.ids, found.paths, found.classes) == (saved.ids, saved.paths, saved.classes)
    assert found.spec == saved.spec
    np.testing.assert_array_equal(found.labels, saved.labels)
    np.testing.assert_array_equal(found.vectors, saved.vectors)
    assert isinstance(found.vectors, np.memmap)


def test_load_embeddings__missing(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"there are no embeddings at .*none\.npy"):
        load_embeddings(tmp_path / "none.npy")


def test_load_embeddings__other_files(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"no array")
    (tmp_path / "a.npy.json").write_text("{}")
    with pytest.raises(EncoderError, match="holds no embeddings"):
        load_embeddings(tmp_path / "a.npy")


def test_load_embeddings__another_number_of_vectors(tmp_path: Path) -> None:
    save_embeddings(make_embeddings(5), tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", make_embeddings(4).vectors)
    with pytest.raises(EncoderError, match=r"\[4, 16\] for 5 ids, dim 16"):
        load_embeddings(tmp_path / "a.npy")
