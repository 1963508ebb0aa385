"""Time and peak memory of the factored loss against the dense form, forward and backward, on the same threads.

    python benchmarks/loss.py [--precision bf16|fp32] [--batch 8] [--rounds 5]

Sizes are those of ViT-B/16 with the published tokenizer: 196 patches, 147 masked, 8192 codes, width 768. Each form runs
in a process of its own for its memory (peak resident size above that before the first step, Linux) and both take turns
in one process for their time. `projected` is the other exact form, through H^T p.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mcbeit.loss import Codes, multi_choice_loss
from mcbeit.targets import code_probabilities, gather_patches, mixing_weights, patch_affinity, refine

PATCHES, MASKED, CODES, DIM = 196, 147, 8192, 768
TEMPERATURE, REFINE_WEIGHT = 4.0, 0.2
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Inputs(NamedTuple):
    """What a loss is computed from."""

    features: Tensor  # batch patch dim
    weight: Tensor  # code dim
    bias: Tensor  # code
    logits: Tensor  # batch patch code
    patch_ids: Tensor  # batch masked


def make_inputs(batch: int) -> Inputs:
    """Random features and tokenizer logits; the features and the head want gradients."""
    generator = torch.Generator().manual_seed(0)
    return Inputs(
        torch.randn(batch, PATCHES, DIM, generator=generator).requires_grad_(),
        (torch.randn(CODES, DIM, generator=generator) * 0.02).requires_grad_(),
        torch.zeros(CODES).requires_grad_(),
        6 * torch.randn(batch, PATCHES, CODES, generator=generator),
        torch.stack([torch.randperm(PATCHES, generator=generator)[:MASKED].sort().values for _ in range(batch)]),
    )


def dense(x: Inputs) -> Tensor:
    """Head, targets and log-probabilities for all patches, then the masked rows: the official order of work."""
    logits = F.linear(x.features, x.weight, x.bias)
    probabilities = code_probabilities(x.logits, temperature=TEMPERATURE)
    targets = refine(probabilities, patch_affinity(x.features, similarity_temperature=1.0), refine_weight=REFINE_WEIGHT)
    losses = -(targets * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
    return losses.gather(1, x.patch_ids).mean()


def factored(x: Inputs) -> Tensor:
    """Ours."""
    return multi_choice_loss(
        gather_patches(x.features, x.patch_ids), x.weight, x.bias, Codes(x.logits, TEMPERATURE), x.patch_ids, _mixing(x)
    )


def projected(x: Inputs) -> Tensor:
    """The other exact form: <p_j, o_i> = <f_i, H^T p_j> + <b, p_j>, image by image, by autograd."""
    total, mixing = x.features.new_zeros(()), _mixing(x)
    for features, logits, ids, shares in zip(x.features, x.logits, x.patch_ids, mixing, strict=True):
        masked = features[ids]
        probabilities = code_probabilities(logits[None], temperature=TEMPERATURE)[0]
        overlap = masked @ (probabilities @ x.weight).T + (probabilities @ x.bias)
        total = total + (
            torch.logsumexp(F.linear(masked, x.weight, x.bias).float(), dim=-1).sum() - (shares * overlap).sum()
        )
    return total / x.patch_ids.numel()


def _mixing(x: Inputs) -> Tensor:
    affinity = patch_affinity(x.features, x.patch_ids, similarity_temperature=1.0)
    return mixing_weights(affinity, x.patch_ids, refine_weight=REFINE_WEIGHT)


FORMS: dict[str, Callable[[Inputs], Tensor]] = {"dense": dense, "factored": factored, "projected": projected}


def step(form: str, x: Inputs, dtype: torch.dtype) -> float:
    """Seconds of one forward and backward pass."""
    for tensor in x[:3]:
        tensor.grad = None
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = FORMS[form](x)
    loss.backward()
    return time.perf_counter() - start


def memory_bytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS is the resident size, VmHWM its peak since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_of(form: str, batch: int, dtype: torch.dtype) -> int:
    """Bytes that a step needs at most beyond its inputs, in this process."""
    step(form, make_inputs(1), dtype)
    inputs = make_inputs(batch)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_bytes("VmRSS")
    step(form, inputs, dtype)
    return memory_bytes("VmHWM") - before


def compare(batch: int, rounds: int, precision: str) -> None:
    """Print one line per form."""
    dtype, inputs = PRECISIONS[precision], make_inputs(batch)
    command = [sys.executable, __file__, "--precision", precision, "--batch", str(batch), "--memory-of"]
    memory = {
        form: int(subprocess.run([*command, form], capture_output=True, text=True, check=True).stdout) for form in FORMS
    }
    turns = [{form: step(form, inputs, dtype) for form in FORMS} for _ in range(rounds + 1)][1:]
    print(f"{precision}, batch {batch}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, {rounds} rounds")
    for form in FORMS:
        seconds, ratio = (
            median(values) for values in zip(*((t[form], t["dense"] / t[form]) for t in turns), strict=True)
        )
        print(
            f"{form:10s} {seconds:.3f} s (median), {ratio:.2f} x as fast as dense; "
            f"peak {memory[form] / 2**20:.0f} MiB, dense needs {memory['dense'] / memory[form]:.1f} x as much"
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=list(FORMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(peak_of(options.memory_of, options.batch, PRECISIONS[options.precision]))
    else:
        compare(options.batch, options.rounds, options.precision)


if __name__ == "__main__":
    main()
