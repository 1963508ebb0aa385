"""The micro-batcher."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from serving import HeldEncoder

from mcbeit.serve.batcher import MicroBatcher
from mcbeit.serve.config import BatchConfig
from mcbeit.serve.errors import RequestError


def picture(value: int) -> np.ndarray:
    return np.full((64, 64, 3), value, np.uint8)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


class Pipeline:
    """An encoder behind a batcher."""

    def __init__(self, encoder: Any = None, *, pad: bool = False, **batch: Any) -> None:
        self.encoder = encoder or HeldEncoder()
        self.thread = ThreadPoolExecutor(1)
        self.batcher = MicroBatcher(self._compute, self.thread, BatchConfig(**batch), pad=pad)

    def _compute(self, pixels: np.ndarray, patches: bool) -> np.ndarray:
        found: np.ndarray = self.encoder.compute(pixels, patches=patches)
        return found

    async def while_held(self, *work: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
        """Start one image and, while the model is busy with it, the others; then let the model go on."""
        self.encoder.hold()
        first = asyncio.create_task(self.batcher.submit(picture(0)))
        await asyncio.to_thread(self.encoder.entered.wait, 10)
        tasks = [asyncio.create_task(one) for one in work]
        await asyncio.sleep(0)
        self.encoder.may_go.set()
        await first
        return tasks


def test_submit__the_vector_is_that_of_the_image() -> None:
    async def work() -> None:
        pipeline = Pipeline()
        items = await asyncio.gather(*[pipeline.batcher.submit(picture(value)) for value in range(0, 250, 10)])
        for value, item in zip(range(0, 250, 10), items, strict=True):
            alone = pipeline.encoder.compute(picture(value)[None])[0]
            np.testing.assert_allclose(item.vector.result(), alone, rtol=1e-5, atol=1e-6)

    run(work())


def test_submit__an_idle_model_is_not_kept_waiting() -> None:
    async def work() -> None:
        pipeline = Pipeline()
        item = await pipeline.batcher.submit(picture(1))
        assert item.batch_size == 1
        assert pipeline.encoder.sizes == [1]

    run(work())


@pytest.mark.parametrize(("waiting", "sizes"), [(5, [4, 1]), (8, [8]), (13, [8, 4, 1]), (20, [16, 4]), (40, [32, 8])])
def test_submit__what_waits_goes_together_in_few_sizes(waiting: int, sizes: list[int]) -> None:
    async def work() -> None:
        pipeline = Pipeline(max_seconds=3600)
        tasks = await pipeline.while_held(*[pipeline.batcher.submit(picture(value)) for value in range(waiting)])
        await asyncio.gather(*tasks)
        assert pipeline.encoder.sizes == [1, *sizes]

    run(work())


def test_submit__padded_up_where_that_is_cheap() -> None:
    async def work() -> None:
        pipeline = Pipeline(pad=True, max_seconds=3600)
        tasks = await pipeline.while_held(*[pipeline.batcher.submit(picture(value)) for value in range(5)])
        items = await asyncio.gather(*tasks)
        assert pipeline.encoder.sizes == [1, 8]
        assert [item.batch_size for item in items] == [5] * 5

    run(work())


def test_submit__a_slow_model_gets_small_batches() -> None:
    async def work() -> None:
        pipeline = Pipeline(max_seconds=0.5)
        pipeline.batcher.learn(1, 0.2)  # seconds per image: two fit
        pipeline.batcher.learn(1, 0.2)
        tasks = await pipeline.while_held(*[pipeline.batcher.submit(picture(value)) for value in range(6)])
        pipeline.batcher.seconds_per_item = 0.2
        await asyncio.gather(*tasks)
        assert max(pipeline.encoder.sizes[:2]) <= 2

    run(work())


def test_submit__patches_and_vectors_are_not_mixed() -> None:
    async def work() -> None:
        pipeline = Pipeline(max_seconds=3600)
        submit = pipeline.batcher.submit
        kinds = [False, True, False, True]
        tasks = await pipeline.while_held(*[submit(picture(9), patches=patches) for patches in kinds])
        items = await asyncio.gather(*tasks)
        assert [item.vector.result().ndim for item in items] == [1, 3, 1, 3]
        assert pipeline.encoder.sizes == [1, 2, 2]

    run(work())


def test_submit__who_has_left_is_not_computed() -> None:
    async def work() -> None:
        pipeline = Pipeline(max_seconds=3600)
        tasks = await pipeline.while_held(*[pipeline.batcher.submit(picture(value)) for value in range(4)])
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(pipeline.encoder.sizes) <= 1 + 4
        assert [task.cancelled() for task in tasks] == [True, True, False, False]

    run(work())


class Delicate(HeldEncoder):
    """Fails for black images, gives no numbers for white ones."""

    def compute(self, pixels: np.ndarray, *, patches: bool = False) -> np.ndarray:
        if (pixels == 13).all(axis=(1, 2, 3)).any():
            raise RuntimeError("onnxruntime: something with an address 0x7f00")
        numbers = super().compute(pixels, patches=patches)
        numbers[(pixels == 255).all(axis=(1, 2, 3))] = np.nan
        return numbers


def test_submit__a_bad_image_does_not_touch_its_neighbours() -> None:
    async def work() -> None:
        pipeline = Pipeline(Delicate(), max_seconds=3600)
        values = [10, 13, 20, 255, 30, 40, 50, 60]
        tasks = await pipeline.while_held(*[pipeline.batcher.submit(picture(value)) for value in values])
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for value, one in zip(values, found, strict=True):
            if value == 13:
                assert isinstance(one, RequestError)
                assert (one.status, one.code) == (500, "inference_failed")
                assert "0x" not in one.message
            elif value == 255:
                assert isinstance(one, RequestError)
                assert (one.status, one.code) == (422, "not_finite")
            else:
                alone = HeldEncoder().compute(picture(value)[None])[0]
                np.testing.assert_allclose(one.vector.result(), alone, rtol=1e-5, atol=1e-6)
        assert (await pipeline.batcher.submit(picture(7))).vector.result() is not None

    run(work())


def test_close__who_waits_is_told() -> None:
    async def work() -> None:
        pipeline = Pipeline()
        pipeline.encoder.hold()
        tasks = [asyncio.create_task(pipeline.batcher.submit(picture(value))) for value in range(3)]
        await asyncio.to_thread(pipeline.encoder.entered.wait, 10)
        closing = asyncio.create_task(pipeline.batcher.close())
        await asyncio.sleep(0.01)
        pipeline.encoder.may_go.set()
        await closing
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, RequestError) for one in found), found

    run(work())
