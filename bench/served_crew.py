"""From images to vectors by a service: files are sent as they are, as its users send them."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mcbeit.chunk_embedding import Stop, in_order, row_shape
from mcbeit.chunks import Chunk, Plan, Unreadable
from mcbeit.errors import BenchError, ImageError
from mcbeit.served_encoder import ServedEncoder
from mcbeit.sources import ImageSource

IN_FLIGHT = 4  # chunks that are asked for at once
PROBED = 32  # images
MIN_COSINE = 0.999  # between a file that the service decodes, and the pixels that its preprocessing should make of it


class ServedCrew:
    """A service, as what makes chunks; the number of requests under way is bounded, and busy ones are sent again."""

    def __init__(self, encoder: ServedEncoder, source: ImageSource) -> None:
        self.encoder, self.source = encoder, source
        self.spec, self.notes = encoder.spec, encoder.notes

    def chunks(self, plan: Plan, numbers: Iterable[int], stop: Stop) -> Generator[Chunk]:
        """These chunks in their order; none after `stop` says so."""
        with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="ask") as pool:
            try:
                yield from in_order(
                    pool, iter(numbers), lambda n: self._chunk(n, plan.images(n)), ahead=IN_FLIGHT, stop=stop
                )
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _chunk(self, number: int, images: range) -> Chunk:
        unreadable: list[Unreadable] = []
        files = {}
        for image in images:
            try:
                files[image] = self.source.read(image)
            except (ImageError, OSError) as error:
                unreadable.append(Unreadable(image, " ".join(str(error).split())))
        rows = self._ask(files, unreadable)
        good = [image for image in files if image in rows]
        stacked = (
            np.stack([rows[image] for image in good])
            if good
            else np.zeros((0, *row_shape(self.spec, patches=False)), np.float32)
        )
        return Chunk(number, np.array(good, np.int64), stacked, sorted(unreadable))

    def _ask(self, files: dict[int, bytes], unreadable: list[Unreadable]) -> dict[int, np.ndarray]:
        """The vectors of files; where the service refuses one, the files are sent in halves until it is alone."""
        if not files:
            return {}
        try:
            return dict(zip(files, self.encoder.embed(list(files.values())), strict=True))
        except ImageError as error:
            if len(files) == 1:
                unreadable.append(Unreadable(next(iter(files)), " ".join(str(error).split())))
                return {}
        half, found = len(files) // 2, list(files.items())
        return self._ask(dict(found[:half]), unreadable) | self._ask(dict(found[half:]), unreadable)


def probe(encoder: ServedEncoder, source: ImageSource) -> float:
    """The least cosine between what the service makes of files and of the pixels that its manifest says they become.

    Raises BenchError if it is below MIN_COSINE: the service does not preprocess as the model was measured, and any
    number would be of something else.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, num=PROBED).round().astype(int)).tolist()
    files, pixels = [], []
    for image in chosen:
        try:
            data = source.read(image)
            pixels.append(encoder.spec.preprocess.pixels(data))
            files.append(data)
        except (ImageError, OSError):
            continue
    if not files:
        raise BenchError(f"none of {len(chosen)} images can be read, such as '{source.name(chosen[0])}'")
    ours, theirs = encoder.compute(np.stack(pixels)), encoder.embed(files)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    least = float(((ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
    if least < MIN_COSINE:
        raise BenchError(
            f"the service at {encoder.address} makes other vectors of files than of the pixels that its own "
            f"preprocessing makes of them: the least cosine of {len(files)} images is {least:.6f}, at least "
            f"{MIN_COSINE} is needed; look at its version and its limits"
        )
    return least
