"""Images per second of `mcbeit embed` against a bare loop of the same encoder over decoded images, in turns.

    python benchmarks/embed.py [MODEL] [--count 512] [--batch 32] [--rounds 3] [--set KEY=VALUE ...] [--folder TMP]

The images are made JPEGs of 500 x 375, about the weight of ImageNet's. The bare loop has them in memory, decoded and
in batches; `embed` reads the files, decodes, keeps chunks, syncs them and writes a .npy file, all of which is timed;
opening the model is not. Where decoding takes cores that the encoder would use, the best that there can be is
1 / (1 + decode / encode) with `decode` the milliseconds of one core per image, divided by the cores, and `encode` those
of the bare loop; it is printed too.

Other programs on the machine make the ratio of rates jump. The ratio of processor time, of all threads together, does
not ask who else is there: what `embed` takes beyond the bare loop is decoding, and its own overhead.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from input import made_jpegs

from mcbeit.chunk_embedding import LocalCrew
from mcbeit.embed import Output, make
from mcbeit.embed_task import EmbedConfig, Task, task_config
from mcbeit.encoder import PixelEncoder
from mcbeit.machine import num_cores
from mcbeit.stop import StopRequest


class Took(NamedTuple):
    """Seconds for all images: by the clock, and of processors."""

    wall: float
    cpu: float


def clock(work: Callable[[], object]) -> Took:
    """How long it takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def bare_loop(encoder: PixelEncoder, batches: list[np.ndarray]) -> None:
    """The encoder alone."""
    for pixels in batches:
        encoder.embed_pixels(pixels)


def main() -> None:
    """Print both rates, their ratio in each round, and what is in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="timm:vit_small_patch16_224")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as of mcbeit embed")
    parser.add_argument("--folder", help="where to put the images for the time; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name, "images")
        folder.mkdir()
        for i, data in enumerate(made_jpegs(options.count, 500, 375)):
            (folder / f"{i:06}.jpg").write_bytes(data)
        config = task_config(EmbedConfig, str(folder), [f"batch_size={options.batch}", *options.set])
        task = Task(options.model, config)
        source = task.open_source()
        crew = LocalCrew(task, source)
        pixels: list[np.ndarray] = []
        decode = clock(lambda: pixels.extend(crew.spec.preprocess.pixels(source.read(i)) for i in range(len(source))))
        batches = [np.stack(pixels[i : i + options.batch]) for i in range(0, len(pixels), options.batch)]
        bare, whole = [], []
        bare_loop(crew.encoder, batches[:1])
        for turn in range(options.rounds):
            output = Output(Path(name, f"{turn}.npy"), task)
            bare.append(clock(lambda: bare_loop(crew.encoder, batches)))
            whole.append(clock(lambda output=output: make(output, source, crew, StopRequest())))
    rates = [options.count / median(took.wall for took in found) for found in (bare, whole)]
    ratios = [a.wall / b.wall for a, b in zip(bare, whole, strict=True)]
    cpu = median(a.cpu / b.cpu for a, b in zip(bare, whole, strict=True))
    best = 1 / (1 + decode.cpu / num_cores() / median(took.wall for took in bare))
    print(f"{options.model}, {options.count} images, batches of {options.batch}, {options.rounds} rounds, medians")
    print(f"bare loop {rates[0]:.1f} images/s; mcbeit embed {rates[1]:.1f} images/s")
    print(f"ratio {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)}); of processor time {cpu:.2f}")
    each = decode.cpu * 1000 / options.count
    print(f"decode {each:.2f} ms per image on one core; if it takes the encoder's cores, {best:.2f} is the most")


if __name__ == "__main__":
    main()
