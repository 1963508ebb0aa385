"""Images per second of `mcbeit embed` against a bare loop of the same encoder over decoded images, in turns.

    python benchmarks/embed.py [MODEL] [--count 512] [--batch 32] [--rounds 3] [--set KEY=VALUE ...] [--folder TMP]

The images are made JPEGs of 500 x 375, about the weight of ImageNet's. The bare loop has them in memory, decoded and
in batches; `embed` reads the files, decodes, keeps chunks, syncs them and writes a .npy file, all of which is timed;
opening the model is not. Where decoding takes cores that the encoder would use, the best that there can be is
1 / (1 + decode / encode) with `decode` the milliseconds of one core per image, divided by the cores, and `encode` those
of the bare loop; it is printed too.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from input import made_jpegs

from mcbeit.chunk_embedding import LocalCrew
from mcbeit.embed import Output, make
from mcbeit.embed_task import EmbedConfig, Task, task_config
from mcbeit.encoder import PixelEncoder
from mcbeit.machine import num_cores
from mcbeit.stop import StopRequest


def bare_rate(encoder: PixelEncoder, batches: list[np.ndarray]) -> float:
    """Images per second of the encoder alone."""
    start = time.perf_counter()
    for pixels in batches:
        encoder.embed_pixels(pixels)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def embed_rate(output: Output, crew: LocalCrew) -> float:
    """Images per second from files to a file."""
    start = time.perf_counter()
    make(output, crew.source, crew, StopRequest())
    return len(crew.source) / (time.perf_counter() - start)


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
        start = time.perf_counter()
        pixels = [crew.spec.preprocess.pixels(source.read(i)) for i in range(len(source))]
        decode = (time.perf_counter() - start) / len(source)
        batches = [np.stack(pixels[i : i + options.batch]) for i in range(0, len(pixels), options.batch)]
        bare, whole = [], []
        crew.encoder.embed_pixels(batches[0])
        for turn in range(options.rounds):
            bare.append(bare_rate(crew.encoder, batches))
            whole.append(embed_rate(Output(Path(name, f"{turn}.npy"), task), crew))
    ratios = [a / b for a, b in zip(whole, bare, strict=True)]
    best = 1 / (1 + decode / num_cores() * median(bare))
    print(f"{options.model}, {options.count} images, batches of {options.batch}, {options.rounds} rounds, medians")
    print(f"bare loop {median(bare):.1f} images/s; mcbeit embed {median(whole):.1f} images/s")
    print(f"ratio {median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    print(f"decode {decode * 1000:.2f} ms per image and core; if it takes the encoder's cores, {best:.2f} is the most")


if __name__ == "__main__":
    main()
