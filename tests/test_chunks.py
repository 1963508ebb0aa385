"""The folder of finished chunks: how images are cut, what is kept, what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from mcbeit.chunks import (
    MAX_BYTES,
    MAX_CHUNKS,
    MIN_IMAGES,
    Chunk,
    ChunkFolder,
    Plan,
    Unreadable,
    make_plan,
    open_chunks,
    writing,
)
from mcbeit.errors import EmbeddingError
from mcbeit.sources import open_folder

PLAN = Plan(num_images=10, chunk_size=4)
JOB = {"model": {"fingerprint": "abc", "dim": 3}, "batch_size": 2}


def chunk(number: int, images: list[int], unreadable: list[Unreadable] | None = None) -> Chunk:
    """Rows that tell which image they are of."""
    rows = np.array(images, np.float32)[:, None] * np.ones(3, np.float32)
    return Chunk(number, np.array(images, np.int64), rows, unreadable or [])


@pytest.mark.parametrize(("num_images", "num_chunks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (10, 3)])
def test_plan__covers_every_image_once(num_images: int, num_chunks: int) -> None:
    plan = Plan(num_images, 4)
    assert plan.num_chunks == num_chunks
    assert [image for number in range(num_chunks) for image in plan.images(number)] == list(range(num_images))


@pytest.mark.parametrize(
    ("num_images", "row_bytes", "batch_size", "chunk_size"),
    [
        (10, 4 * 384, 32, MIN_IMAGES),
        (10, 4 * 384, 48, 96),  # whole batches
        (10, 4 * 384, 256, 256),
        (1_000_000, 4 * 384, 32, 256),  # not too many files
        (10, MAX_BYTES // 40, 32, 32),  # as many as memory takes, in whole batches
        (10, MAX_BYTES // 40, 41, 40),  # less than a batch
        (10, 2 * MAX_BYTES, 32, 1),
    ],
)
def test_make_plan__chunks_are_whole_batches_within_bounds(
    num_images: int, row_bytes: int, batch_size: int, chunk_size: int
) -> None:
    plan = make_plan(num_images, row_bytes=row_bytes, batch_size=batch_size)
    assert plan == Plan(num_images, chunk_size)
    assert plan.num_chunks <= MAX_CHUNKS


def test_chunk_folder__gives_back_what_it_got_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "out.npy.partial"
    with open_chunks(folder, PLAN, JOB, out=tmp_path / "out.npy") as chunks:
        chunks.add(chunk(2, [8, 9]))
        chunks.add(chunk(0, [0, 2, 3], [Unreadable(1, "truncated")]))
        assert chunks.missing() == [1]
    with open_chunks(folder, PLAN, JOB, out=tmp_path / "out.npy") as chunks:
        assert (chunks.missing(), chunks.num_done, chunks.num_unreadable) == ([1], 6, 1)
        chunks.add(chunk(1, [4, 5, 6, 7]))
        found = list(chunks.read())
        assert [one.number for one in found] == [0, 1, 2]
        assert np.concatenate([one.images for one in found]).tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]
        assert np.concatenate([one.rows for one in found])[:, 1].tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]
        assert found[0].unreadable == [Unreadable(1, "truncated")]
        chunks.remove()
    assert not folder.exists()


def test_chunk_folder__a_chunk_without_rows_is_done_too(tmp_path: Path) -> None:
    bad = [Unreadable(image, "empty") for image in range(4)]
    with open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "o") as chunks:
        chunks.add(Chunk(0, np.zeros(0, np.int64), np.zeros((0, 3), np.float32), bad))
    assert ChunkFolder(tmp_path / "p", PLAN).missing() == [1, 2]


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"noise" * 20])
def test_chunk_folder__a_damaged_chunk_is_made_again(damage: bytes, tmp_path: Path) -> None:
    with open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "o") as chunks:
        for number in range(3):
            chunks.add(chunk(number, list(PLAN.images(number))))
    (tmp_path / "p" / "00000001.safetensors").write_bytes(damage)
    assert ChunkFolder(tmp_path / "p", PLAN).missing() == [1]


def test_chunk_folder__what_a_kill_left_half_written_is_no_chunk(tmp_path: Path) -> None:
    with open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "o") as chunks:
        chunks.add(chunk(0, [0, 1, 2, 3]))
    whole = (tmp_path / "p" / "00000000.safetensors").read_bytes()
    (tmp_path / "p" / ".00000001.safetensors.partial").write_bytes(whole)
    assert ChunkFolder(tmp_path / "p", PLAN).missing() == [1, 2]


def test_forget_mended__drops_chunks_with_an_image_that_can_be_read_now(shapes: Path, tmp_path: Path) -> None:
    source = open_folder(shapes)
    with open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "o") as chunks:
        chunks.add(chunk(0, [0, 2, 3], [Unreadable(1, "truncated")]))
        chunks.add(chunk(1, [4, 5, 6], [Unreadable(7, "truncated")]))
        chunks.forget_mended(source, lambda source, image: image == 7)
        assert (chunks.missing(), chunks.num_unreadable) == ([1, 2], 1)
    assert ChunkFolder(tmp_path / "p", PLAN).missing() == [1, 2]


def test_write_list__names_images_in_their_order_with_reasons(shapes: Path, tmp_path: Path) -> None:
    source = open_folder(shapes)
    with open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "o") as chunks:
        chunks.add(chunk(1, [4, 5, 6], [Unreadable(7, "second")]))
        chunks.add(chunk(0, [0, 2, 3], [Unreadable(1, "first")]))
        chunks.write_list(tmp_path / "list.txt", source)
    lines = (tmp_path / "list.txt").read_text().splitlines()
    assert lines == [f"{source.name(1)}\tfirst", f"{source.name(7)}\tsecond"]


def test_open_chunks__refuses_the_rows_of_another_job_and_names_what_differs(tmp_path: Path) -> None:
    with open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "o"):
        pass
    other = {"model": {"fingerprint": "xyz", "dim": 3}, "batch_size": 8}
    with (
        pytest.raises(EmbeddingError, match="the beginning of another job") as error,
        open_chunks(tmp_path / "p", PLAN, other, out=tmp_path / "o"),
    ):
        pass
    assert str(error.value).splitlines()[1:] == [
        "  model.fingerprint: abc there, xyz now",
        "  batch_size: 2 there, 8 now",
    ]


def test_open_chunks__one_command_at_a_time(tmp_path: Path) -> None:
    with (
        open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "out.npy"),
        pytest.raises(EmbeddingError, match=r"another command is at work on '.*out\.npy'"),
        open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "out.npy"),
    ):
        pass
    with open_chunks(tmp_path / "p", PLAN, JOB, out=tmp_path / "out.npy") as chunks:
        assert chunks.missing() == [0, 1, 2]


def test_writing__a_disk_that_refuses_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(EmbeddingError, match=r"cannot be written to: .*; make room .* --resume"),
        open_chunks(tmp_path / "file" / "p", PLAN, JOB, out=tmp_path / "o"),
    ):
        pass
    with pytest.raises(EmbeddingError, match="No space left on device"), writing(tmp_path):
        raise OSError(28, os.strerror(28))
