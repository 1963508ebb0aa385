"""The model that is really served is measured: files go over HTTP, and come back as the same numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from measured import write_colours
from PIL import Image
from serving import serving

from mcbeit.bench.harness import make_plan, run
from mcbeit.bench.served_crew import probe
from mcbeit.encoder import load_encoder
from mcbeit.errors import BenchError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.preprocess import Preprocess
from mcbeit.served_encoder import ServedEncoder
from mcbeit.sources import open_source
from mcbeit.stop import StopRequest


@pytest.fixture(scope="module")
def service() -> Iterator[httpx.Client]:
    with serving() as client:
        yield client


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return write_colours(tmp_path / "colours", train=30)


def measure(models: list[str], colours: Path, out: Path) -> list[dict[str, object]]:
    found = make_plan(
        ["knn"], models, [f"colours={colours}"], preset="smoke", out=out,
        assignments=["data.max_corrupt_fraction=0.2"],
    )  # fmt: skip
    return [result.model_dump() for result in run(found, resume=False, stop=StopRequest())]


def test_a_service_and_the_model_itself_give_the_same_answers(
    service: httpx.Client, colours: Path, tmp_path: Path
) -> None:
    here, there = measure(["fake", str(service.base_url)], colours, tmp_path / "out")
    assert there["answers"] == here["answers"]
    assert there["metrics"] == here["metrics"]
    assert there["model"]["kind"] == "served"  # type: ignore[index]


def test_an_image_that_the_service_refuses_is_left_out_alone(
    service: httpx.Client, colours: Path, tmp_path: Path
) -> None:
    bad = colours / "train" / "red" / "7.png"
    bad.write_bytes(b"no image")
    (there,) = measure([str(service.base_url)], colours, tmp_path / "out")
    assert there["data"]["splits"]["train"]["used"] == {  # type: ignore[index]
        "num_used": 89, "num_unreadable": 1, "unreadable": (str(bad),),
    }  # fmt: skip


def test_files_and_pixels_agree_before_anything_is_measured(service: httpx.Client, colours: Path) -> None:
    encoder = load_encoder(str(service.base_url))
    assert isinstance(encoder, ServedEncoder)
    assert probe(encoder, open_source(str(colours / "val"))) > 0.99999


class Mirrored(Preprocess):
    """It says what it does not do."""

    def pixels(self, image: Any) -> np.ndarray:
        return np.ascontiguousarray(super().pixels(image)[::-1])


def test_a_service_that_does_not_preprocess_as_it_says_is_not_measured(colours: Path, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 16).astype(np.uint8)[:, None, None].repeat(16, 1).repeat(3, 2)
    for path in (colours / "val").glob("*/*.png"):
        Image.fromarray(ramp).save(path)
    encoder = FakeEncoder()
    encoder.spec = encoder.spec.model_copy(update={"preprocess": Mirrored(**encoder.spec.preprocess.model_dump())})
    with serving(encoder) as client, pytest.raises(BenchError, match=r"makes other vectors of files"):
        measure([str(client.base_url)], colours, tmp_path / "out")
