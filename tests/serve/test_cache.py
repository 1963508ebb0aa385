"""The cache of vectors."""

import numpy as np
import pytest

from mcbeit.serve.cache import Key, VectorCache


def key(image: str, fingerprint: str = "f", *, patches: bool = False) -> Key:
    return Key(image, fingerprint, patches)


def vector(value: float, size: int = 64) -> np.ndarray:
    return np.full(size, value, np.float32)


def test_get__what_was_put_and_nothing_else() -> None:
    cache = VectorCache(10_000)
    cache.put(key("a"), vector(1))
    assert cache.get(key("b")) is None
    assert cache.get(key("a", "other model")) is None
    assert cache.get(key("a", patches=True)) is None
    found = cache.get(key("a"))
    assert found is not None
    assert found.tolist() == [1.0] * 64


def test_put__the_one_that_was_not_asked_for_longest_goes() -> None:
    cache = VectorCache(2 * (64 * 4 + VectorCache.OVERHEAD_BYTES))
    for name in "ab":
        cache.put(key(name), vector(1))
    cache.get(key("a"))
    cache.put(key("c"), vector(1))
    assert [cache.get(key(name)) is not None for name in "abc"] == [True, False, True]
    assert cache.num_bytes <= cache.max_bytes


def test_put__again_takes_no_more_room() -> None:
    cache = VectorCache(10_000)
    for value in range(5):
        cache.put(key("a"), vector(value))
    assert len(cache) == 1
    assert cache.num_bytes == 64 * 4 + VectorCache.OVERHEAD_BYTES


@pytest.mark.parametrize("max_bytes", [0, 100])
def test_put__what_does_not_fit_is_not_kept(max_bytes: int) -> None:
    cache = VectorCache(max_bytes)
    cache.put(key("a"), vector(1))
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_get__nobody_can_change_what_is_kept() -> None:
    cache, own = VectorCache(10_000), vector(1)
    cache.put(key("a"), own)
    own[:] = 2
    found = cache.get(key("a"))
    assert found is not None
    assert found[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 3
