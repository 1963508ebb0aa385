"""One service of the fake encoder for many tests, and pictures to send to it."""

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from images import encode, photo
from serving import serving

from mcbeit.fake_encoder import FakeEncoder


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of a service that runs."""
    with serving() as client:
        yield client


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Three files."""
    return [encode(photo(seed=1)), encode(photo(seed=2), "jpg"), encode(photo(seed=3), "webp")]


@pytest.fixture(scope="session")
def texts(pictures: list[bytes]) -> list[str]:
    """The same as base64."""
    return [base64.b64encode(data).decode() for data in pictures]


@pytest.fixture(scope="session")
def vectors(pictures: list[bytes]) -> np.ndarray:
    """What the encoder says of them offline, [3, dim]."""
    return FakeEncoder().embed(pictures)


@pytest.fixture(scope="session")
def patch_vectors(pictures: list[bytes]) -> np.ndarray:
    """The same of their patches, [3, patches, dim]."""
    found = FakeEncoder().patch_features(pictures)
    return found.reshape(3, -1, found.shape[-1])
