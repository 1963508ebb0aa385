"""Images per second of one model in torch and as ONNX graphs, and how far the graphs are from torch, in one run.

    python benchmarks/export.py --model runs/demo --model timm:beit_base_patch16_224 --model timm:tf_efficientnet_lite0

All ways are measured in turn, so that another load on the machine is the same for all; compare within a table only.
"not folded" is the graph of timm's own blocks: layer scale, biases and bias tables as they are in torch.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcbeit.bodies import BeitBody
from mcbeit.device import thread_limit
from mcbeit.encoder import EncoderConfig
from mcbeit.graph import write_graph
from mcbeit.machine import cpu_name, num_cores
from mcbeit.model_folder import EMBEDDING, INPUT, PATCH_TOKENS
from mcbeit.onnx_encoder import open_session
from mcbeit.parity import Numbers, compare, compute_all
from mcbeit.precision import write_precision
from mcbeit.real_images import real_pixels
from mcbeit.speed import measure_speed
from mcbeit.torch_encoder import TorchEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--random", action="store_true", help="random weights for models of timm")
    parser.add_argument("--images", type=int, default=64, help="that parity is measured on")
    parser.add_argument("--seconds", type=float, default=10.0, help="per way and batch size, about")
    parser.add_argument("--threads", type=int, default=max(1, int(num_cores())))
    options = parser.parse_args()
    print(f"{cpu_name()}, {options.threads} threads")
    for model in options.model:
        with tempfile.TemporaryDirectory() as folder, thread_limit(options.threads):
            run(model, options, Path(folder))


def run(model: str, options: argparse.Namespace, folder: Path) -> None:
    """Export one model in every way and print its tables."""
    is_random = options.random and model.startswith("timm:") and "efficientnet_lite0" not in model
    config = EncoderConfig(weights="random") if is_random else EncoderConfig()
    encoder = TorchEncoder.load(model, config, device="cpu")
    pixels, told = real_pixels(None, encoder.spec.preprocess, options.images)
    with torch.inference_mode():
        wanted = compute_all(
            lambda part: Numbers(*(one.numpy() for one in encoder.model(torch.from_numpy(part)))), pixels, 8
        )
    print(f"\n{encoder.spec.name}, {encoder.spec.image_size} px; {told}")
    ways: dict[str, Callable[[np.ndarray], object]] = {"torch fp32": encoder.compute}
    ways["torch bf16"] = TorchEncoder(encoder.model, encoder.spec, device="cpu", precision="bf16").compute
    for name, path in graphs(encoder, wanted, pixels, folder).items():
        session = open_session(path, provider="cpu", threads=options.threads)
        ways[f"onnx {name}"] = lambda part, session=session: session.run([EMBEDDING], {INPUT: part})
        print_parity(name, path, session, wanted, pixels)
    found = measure_speed(ways, pixels, seconds=options.seconds)
    for size in dict.fromkeys(speed.batch_size for speed in found):
        base = next(one.images_per_second for one in found if one.batch_size == size)
        for one in (speed for speed in found if speed.batch_size == size):
            ratio = one.images_per_second / base
            print(f"batch {size}  {one.runtime:22}  {one.images_per_second:8.1f} images/s  {ratio:5.2f} x torch fp32")


def graphs(encoder: TorchEncoder, wanted: Numbers, pixels: np.ndarray, folder: Path) -> dict[str, Path]:
    """Every graph of a model, by name."""
    found = {"fp32": folder / "fp32.onnx"}
    write_graph(encoder.model, encoder.spec, found["fp32"])
    if isinstance(encoder.model.body, BeitBody):
        for block in encoder.model.body.model.blocks:
            block.attn.fused_attn = False
        found = {"fp32, not folded": folder / "plain.onnx"} | found
        write_graph(encoder.model, encoder.spec, found["fp32, not folded"], fold=False)
        for block in encoder.model.body.model.blocks:
            block.attn.fused_attn = True
    for precision in ("fp16", "int8"):
        path = folder / f"{precision}.onnx"
        left_out = write_precision(found["fp32"], path, precision, wanted, pixels, print)
        found[precision + (f", {len(left_out)} products in fp32" if left_out else "")] = path
    return found


def print_parity(name: str, path: Path, session: Any, wanted: Numbers, pixels: np.ndarray) -> None:
    """One line per batch size."""
    for size in (1, 3, 8):
        numbers = compute_all(
            lambda part: Numbers(*session.run([EMBEDDING, PATCH_TOKENS], {INPUT: part})), pixels, size
        )
        one = compare(wanted, numbers, size)
        recall = "" if one.recall_at_10 is None else f"  recall@10 {one.recall_at_10:.3f}"
        print(
            f"{name:24} batch {size}  min cosine {one.min_cosine:.7f}  mean {one.mean_cosine:.7f}{recall}  "
            f"{path.stat().st_size / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
