"""Speed of a whole pretraining step of ViT-B/16 with the published tokenizer in the loop, on random weights.

    python benchmarks/step.py [--precision auto|bf16|fp32] [--batch 8] [--masks 1 2 4] [--rounds 3]

224 px, batch 8 (images with their masks), Gumbel-VQGAN on 112 px views, forward, backward, clipping and AdamW.
Prints images/s, model FLOP/s (144 GFLOP per image with one mask) and its share of the matmul peak that is measured
between the steps of the same run, in the same precision, on the same threads.
"""

import argparse
import os
import time
from statistics import median

import torch

from mcbeit.data import Batch
from mcbeit.device import choose_device, choose_precision, matmul_peak, synchronise
from mcbeit.group import ALONE
from mcbeit.jobs import load_job
from mcbeit.masked import MaskedImageModel
from mcbeit.masking import num_masked
from mcbeit.optim import make_optimizer
from mcbeit.pretrain import train_step
from mcbeit.pretrain_setup import PretrainConfig, Pretraining, estimate_cost
from mcbeit.state import TrainingState
from mcbeit.vit import VisionTransformer
from mcbeit.vqgan import GumbelVQGAN


def make_parts(batch: int, masks: int, precision: str, *, compiled: bool) -> Pretraining:
    """The parts of mcbeit-base, tokenizer weights random."""
    assignments = [f"optim.batch_size={batch}", f"data.masks_per_image={masks}", f"compute.precision={precision}"]
    config = load_job("mcbeit-base", assignments)
    assert isinstance(config, PretrainConfig)
    device = choose_device()
    chosen = choose_precision(config.compute.precision, device)
    torch.manual_seed(0)
    tokenizer = GumbelVQGAN(config.tokenizer.vqgan).frozen().to(device, chosen.dtype, memory_format=torch.channels_last)
    backbone = VisionTransformer(config.model, image_size=config.preprocess.image_size)
    model = MaskedImageModel(backbone, tokenizer.vocab_size, config.objective).to(device)
    state = TrainingState.start(model, make_optimizer([model], config.optim), chosen, teacher_of=None)
    state.numbers["temperature"] = 4.0
    if compiled:
        model.compile()
    cost = estimate_cost(config, tokenizer)
    return Pretraining(config, ALONE, device, chosen, tokenizer, chosen.dtype, model, model, state, cost)


def make_batch(parts: Pretraining) -> Batch:
    """Noise, and random masks."""
    config, count = parts.config, num_masked(parts.config.grid, parts.config.mask.ratio)
    masks, crops = config.optim.batch_size, config.optim.batch_size // config.data.masks_per_image
    patches = config.grid[0] * config.grid[1]
    ids = torch.stack([torch.randperm(patches)[:count].sort().values for _ in range(masks)])
    mask = torch.zeros(masks, patches, dtype=torch.bool).scatter(1, ids, True)
    views = [torch.randint(0, 256, (crops, 3, size, size), dtype=torch.uint8) for size in (224, 112)]
    dice = torch.rand(masks, parts.model.backbone.num_dice)
    return Batch(torch.arange(crops), views, mask, ids, dice, []).to(parts.device)


def seconds_of_step(parts: Pretraining, batch: Batch) -> float:
    """One step, waited for."""
    synchronise(parts.device)
    start = time.perf_counter()
    train_step(parts, batch, 1e-4, measured=False)
    synchronise(parts.device)
    return time.perf_counter() - start


def main() -> None:
    """Print one line per number of masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--masks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    for masks in options.masks:
        parts = make_parts(options.batch, masks, options.precision, compiled=options.compile)
        batch = make_batch(parts)
        seconds_of_step(parts, batch)
        seconds, peaks = [], []
        for _ in range(options.rounds):
            peaks.append(matmul_peak(parts.device, parts.precision.dtype, seconds=1.0))
            seconds.append(seconds_of_step(parts, batch))
        rate = options.batch / median(seconds)
        # images/s count an image once per mask; the FLOPs are those that are really done
        flops, peak = rate * parts.cost.total, median(peaks)
        print(
            f"{parts.precision.name} on {parts.device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
            f"batch {options.batch}, {masks} mask(s) per tokenized image: {rate:.2f} images/s, "
            f"{parts.cost.total / 1e9:.0f} GFLOP per image, {flops / 1e9:.0f} GFLOP/s = {flops / peak:.1%} of the "
            f"matmul peak {peak / 1e9:.0f} GFLOP/s"
        )


if __name__ == "__main__":
    main()
