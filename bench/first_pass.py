"""Cheap inner products whose error has a bound: the first pass of an exact search for neighbours.

Vectors x and y are taken relative to a centre c and rounded, x - c = x' + r and y - c = y' + s. Then

    x . y - x . c  =  x' . y' + c . (y - c)  +  r . (y - c) + x' . s,

and the last two terms are at most |r| |y - c| + |x'| |s|, from the lengths of what rounding really took away. The term
x . c is the same for all y. The centre matters where vectors lie in a narrow cone, as those of image networks do: what
is rounded is then much shorter than the vectors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from mcbeit.device import has_bf16_products
from mcbeit.errors import BenchError

Format = Literal["fp32", "bf16", "int8"]

BLOCK_ROWS = 128  # vectors rounded at once on a CPU, so that they stay in its cache
LARGEST = 127  # of int8
SLACK = 1.001  # for the rounding of lengths and of the bound
FP32_ROUNDING = 2.0**-24  # relative, of one operation
BF16_ROUNDING = 2.0**-8


class Rounded(NamedTuple):
    """Vectors less a centre in a cheaper format, `numbers * scale`, and what that costs."""

    numbers: Shaped[Tensor, "vector dim"]
    scale: Float32[Tensor, " vector"]  # 1 but for int8
    offset: Float32[Tensor, " vector"]  # the centre times the vector less the centre
    length: Float32[Tensor, " vector"]  # of the vector less the centre
    lost: Float32[Tensor, " vector"]  # the length of what rounding took away

    def rows(self, some: slice) -> "Rounded":
        """Some of the vectors."""
        return Rounded(*(part[some] for part in self))


def round_vectors(
    vectors: Float[np.ndarray, "vector dim"], center: Float32[Tensor, " dim"], number_format: Format
) -> Rounded:
    """Less the centre, on its device, in a format; int8 is scaled by the largest number of each vector."""
    size = BLOCK_ROWS if center.device.type == "cpu" else len(vectors)
    blocks = []
    for start in range(0, len(vectors), size):
        block = torch.from_numpy(np.array(vectors[start : start + size], dtype=np.float32)).to(center.device)
        blocks.append(_round_block(block, center, number_format))
    return Rounded(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _round_block(
    vectors: Float32[Tensor, "vector dim"], center: Float32[Tensor, " dim"], number_format: Format
) -> Rounded:
    less = vectors - center
    offset = torch.mv(less, center)
    length = torch.linalg.vector_norm(less, dim=1)
    scale = torch.ones_like(length)
    match number_format:
        case "fp32":
            return Rounded(less, scale, offset, length, torch.zeros_like(length))
        case "bf16":
            numbers = less.bfloat16()
            less -= numbers
        case "int8":
            scale = (less.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
            whole = (less / scale[:, None]).round_()
            less.addcmul_(whole, scale[:, None], value=-1)
            numbers = whole.to(torch.int8)
    return Rounded(numbers, scale, offset, length, torch.linalg.vector_norm(less, dim=1))


def products(queries: Rounded, gallery: Rounded) -> Float32[Tensor, "query item"]:
    """For each query its inner products with the gallery, less the one with the centre, up to `error_bound`."""
    left, right = queries.numbers, gallery.numbers.T
    if left.dtype == torch.int8:
        # torch 2.14 multiplies vectors of one number wrongly in int8
        exact = torch._int_mm(left, right).float() if len(right) > 1 else left.float() * right.float()
        return torch.addcmul(gallery.offset, exact.mul_(gallery.scale), queries.scale[:, None])
    if left.dtype == torch.float32:
        return torch.addmm(gallery.offset, left, right)
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32).add_(gallery.offset)
    return torch.mm(left, right).float().add_(gallery.offset)


def error_bound(queries: Rounded, gallery: Rounded, center: Float32[Tensor, " dim"]) -> Float32[Tensor, " query"]:
    """The most by which any of a query's `products` with these vectors can be wrong."""
    most_lost = gallery.lost.max()
    longest, length = gallery.length.max() + most_lost, queries.length + queries.lost
    # of sums of so many numbers in fp32, in any order: the product and the offset
    of_sums = (len(center) + 8) * FP32_ROUNDING * (length + torch.linalg.vector_norm(center))
    of_product = BF16_ROUNDING * length if queries.numbers.dtype == torch.bfloat16 else 0.0
    return SLACK * (length * most_lost + (queries.lost + of_sums + of_product) * longest)


def choose_format(device: torch.device) -> Format:
    """What the hardware multiplies fastest: int8 or bf16, where it has instructions for it, else fp32.

    A CPU without them only imitates bf16: measured here, five times slower than fp32. int8 was four times faster.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if has_int8_products(device):
        return "int8"
    return "bf16" if device.type == "cpu" and has_bf16_products() else "fp32"


def require_products(number_format: Format, device: torch.device) -> None:
    """Raises BenchError for int8 if the device has no exact products of it; the other formats can be imitated."""
    if number_format == "int8" and not has_int8_products(device):
        raise BenchError(f"first_pass=int8, but {device.type} has no instructions for it here; take auto")


def has_int8_products(device: torch.device) -> bool:
    """Whether products of int8 are fast and exact: older CPUs add pairs of them in 16 bits, which overflow."""
    found = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(found.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply fp32 as fp32 in here, whatever else torch was allowed to do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
