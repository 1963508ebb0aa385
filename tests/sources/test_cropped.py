import numpy as np
import pytest
from images import encode, exif, photo
from PIL import Image

from mcbeit.errors import ImageError
from mcbeit.image_files import decode
from mcbeit.sources import FileSource
from mcbeit.sources.cropped import CroppedSource


def cropped(folder, content: bytes, box: tuple[float, float, float, float]) -> CroppedSource:
    (folder / "x.jpg").write_bytes(content)
    return CroppedSource(FileSource(folder, ["x.jpg"]), np.array([box]))


def test_read__is_the_part_without_loss(tmp_path) -> None:
    content = encode(photo(48, 64), "jpg")
    source = cropped(tmp_path, content, (10.4, 5.6, 30.0, 40.0))
    found = np.asarray(decode(source.read(0)))
    assert np.array_equal(found, np.asarray(decode(content))[6:40, 10:30])
    assert (len(source), source.name(0), source.labels) == (1, str(tmp_path / "x.jpg"), None)


def test_read__of_an_image_that_lies_on_its_side(tmp_path) -> None:
    """Boxes are of pixels as they are stored; the part is turned as the whole is."""
    content = encode(Image.fromarray(photo(48, 64)), "jpg", exif=exif(6))
    source = cropped(tmp_path, content, (0.0, 0.0, 64.0, 20.0))
    whole, part = (np.asarray(decode(data)) for data in (content, source.read(0)))
    assert whole.shape == (64, 48, 3)
    assert np.array_equal(part, whole[:, 28:])


def test_read__takes_grey_and_what_lies_outside(tmp_path) -> None:
    content = encode(Image.fromarray(photo(8, 8)).convert("L"), "jpg")
    found = np.asarray(decode(cropped(tmp_path, content, (4.0, 4.0, 12.0, 12.0)).read(0)))
    assert np.array_equal(found[:4, :4], np.asarray(decode(content))[4:, 4:])
    assert not found[4:].any()


@pytest.mark.parametrize("content", [b"", b"text", encode(photo(), "jpg")[:700]])
def test_read__of_what_is_no_image_is_an_image_error(content: bytes, tmp_path) -> None:
    with pytest.raises(ImageError):
        cropped(tmp_path, content, (0.0, 0.0, 8.0, 8.0)).read(0)


def test_read__of_no_file_is_an_os_error(tmp_path) -> None:
    source = cropped(tmp_path, b"", (0.0, 0.0, 8.0, 8.0))
    (tmp_path / "x.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0)


def test_summary__is_by_names_and_boxes(tmp_path) -> None:
    first, again, other = (cropped(tmp_path, b"", (0.0, 0.0, 8.0, end)).summary() for end in (8.0, 8.0, 9.0))
    assert first == again
    assert first["images"] == 1
    assert first != other
