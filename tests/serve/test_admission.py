"""Who is let in."""

import pytest

from mcbeit.serve.admission import Admission
from mcbeit.serve.config import Limits
from mcbeit.serve.errors import RequestError


def admission(seconds_per_item: float = 0.0, **limits: float) -> Admission:
    return Admission(Limits(**limits), lambda: seconds_per_item)  # type: ignore[arg-type]


def test_images__are_counted_while_they_are_inside() -> None:
    gate = admission()
    with gate.images(3), gate.images(4):
        assert gate.items == 7
    assert gate.items == 0


def test_images__more_than_a_request_may_have() -> None:
    with pytest.raises(RequestError, match="more than the 256 images allowed") as caught, admission().images(257):
        pass
    assert (caught.value.status, caught.value.code) == (413, "too_many_items")


def test_images__more_than_may_wait() -> None:
    gate = admission(waiting_items=10)
    with gate.images(8):
        with pytest.raises(RequestError, match="8 images are waiting") as caught, gate.images(3):
            pass
        assert (caught.value.status, caught.value.retry_after) == (429, 1.0)
        with gate.images(2):
            pass
    assert gate.items == 0


def test_images__more_than_can_be_done_in_time() -> None:
    gate = admission(seconds_per_item=0.5, waiting_seconds=5)
    with gate.images(10):  # 5 seconds of work
        with pytest.raises(RequestError) as caught, gate.images(1):
            pass
        assert caught.value.retry_after == 3.0
        with pytest.raises(RequestError):
            gate.check()
        assert gate.load == 1.0


def test_images__one_large_request_is_let_in_when_nothing_is_done() -> None:
    with admission(seconds_per_item=1, waiting_seconds=5, waiting_items=10).images(200) as nothing:
        assert nothing is None


def test_bytes__are_bounded_for_all_together() -> None:
    gate = admission(bytes_in_flight=10_000, body_bytes=10_000)
    gate.take_bytes(9_000)
    with pytest.raises(RequestError) as caught:
        gate.take_bytes(2_000)
    assert caught.value.status == 429
    gate.give_bytes(9_000)
    gate.take_bytes(10_000)
