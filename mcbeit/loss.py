"""The mc-BEiT loss, factored and for masked patches only: equation (5) of `targets.py` without forming (4).

With A = omega W + (1 - omega) I, whose rows sum to 1, and o_i the predicted logits of a masked patch i,

    L_i = logsumexp(o_i) - sum_j A_ij G_ij,    G_ij = <o_i, p_j>,
    dL_i/do_i = softmax(o_i) - sum_j A_ij p_j,    dL_i/dA_ij = logsumexp(o_i) - G_ij.

Only masked rows meet the vocabulary, and everything of vocabulary size lives in one chunk of the batch at a time, whose
gradient is made in the same pass; the dense form keeps many tensors [batch, patch, vocabulary] alive for the backward.
The head's products are made for a large chunk, in one buffer that holds the logits and then their gradient; what is
between them goes image by image, so that it stays near the caches.
The other exact form, through H^T p, costs more here: p is dense, so H^T p needs a second product of the head's size
(`benchmarks/loss.py` measures both against the dense form).
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcbeit.targets import code_probabilities, gather_patches, hard_probabilities

HEAD_CHUNK_BYTES = 24 * 2**20  # of the float32 logits that the head makes at once
CHUNK_BYTES = 8 * 2**20  # of one float32 tensor of vocabulary size between the head's products
CHUNK_BYTES_ON_GPU = 256 * 2**20  # of both: fewer and larger kernels
CODE_BLOCK = 2048  # of the vocabulary in one product on a CPU, where that for all 8192 codes is slower
ROW_PADDING = 16  # of the logits: rows a power of two apart fall into the same few sets of a CPU's cache


class Codes(NamedTuple):
    """What the tokenizer says of every patch, and how its choices are read."""

    logits: Float[Tensor, "image patch code"]
    temperature: float
    hard: bool = False  # one choice per patch (BEiT) instead of many
    repeats: int = 1  # rows of the batch per image: its masks follow each other

    def logits_of(self, rows: slice) -> Float[Tensor, "rows patch code"]:
        """The logits for some rows of the batch."""
        if self.repeats == 1:
            return self.logits[rows]
        return self.logits[torch.arange(rows.start, rows.stop, device=self.logits.device) // self.repeats]

    def probabilities(
        self, rows: slice, patch_ids: Int[Tensor, "rows masked"] | None = None
    ) -> Float[Tensor, "rows patch code"]:
        """Equation (1) for some rows of the batch, for all patches or the given ones."""
        logits = self.logits_of(rows)
        if patch_ids is not None:
            logits = gather_patches(logits, patch_ids)
        return hard_probabilities(logits) if self.hard else code_probabilities(logits, temperature=self.temperature)


def multi_choice_loss(
    features: Float[Tensor, "batch masked dim"],
    weight: Float[Tensor, "code dim"],
    bias: Float[Tensor, " code"],
    codes: Codes,
    patch_ids: Int[Tensor, "batch masked"],
    mixing: Float[Tensor, "batch masked patch"] | None = None,
) -> Float[Tensor, ""]:
    """Equation (5): the mean over all masked patches, in at least float32.

    `features` are those of the masked patches, `weight` and `bias` the vocabulary head, `mixing` the matrix A; None
    means A = I (a refine weight of 0). Gradients reach features, weight, bias and, where it requires one, mixing.
    Inside autocast the products run in its dtype and everything else in float32.
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    with torch.autocast(device, enabled=False):
        learns = torch.is_grad_enabled()  # inside an autograd function it never is
        loss: Tensor = _FactoredLoss.apply(features, weight, bias, mixing, codes, patch_ids, dtype, learns)
    return loss


class _FactoredLoss(torch.autograd.Function):
    """Forward makes the gradients too, chunk by chunk; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        mixing: Tensor | None,
        codes: Codes,
        patch_ids: Tensor,
        dtype: torch.dtype,
        learns: bool,
    ) -> Tensor:
        exact = torch.promote_types(weight.dtype, torch.float32)
        head, offset = weight.to(dtype), bias.to(dtype)
        needs = tuple(need and learns for need in ctx.needs_input_grad[:4])
        total = torch.zeros((), dtype=exact, device=features.device)
        grads = _Gradients.empty(features, weight, bias, mixing, needs=needs, dtype=exact)
        for chunk in _head_chunks(codes, patch_ids.shape[1]):
            hidden = features[chunk].to(dtype)
            buffer = _head_product(hidden, head)
            for rows in row_chunks(codes, chunk):
                # without mixing a patch's target is its own: those of visible patches are not needed
                wanted = patch_ids[rows] if mixing is None else None
                some = buffer[rows.start - chunk.start : rows.stop - chunk.start]
                mixed = None if mixing is None else mixing[rows]
                piece = _Piece(some + offset, codes.probabilities(rows, wanted), mixed)
                total += piece.loss(grads, rows, error=some)
            if grads.want_error:
                grads.add(chunk, hidden, head, buffer.flatten(0, 1))
        ctx.grads, ctx.count = grads, patch_ids.numel()
        return total / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("multi_choice_loss can be differentiated once: call backward() without retain_graph")
        grads, ctx.grads = ctx.grads.scaled(upstream / ctx.count), None
        return grads.features, grads.weight, grads.bias, grads.mixing, None, None, None, None


def _head_product(
    hidden: Float[Tensor, "rows masked dim"], head: Float[Tensor, "code dim"]
) -> Float[Tensor, "rows masked code"]:
    """The predicted logits without their bias, in a new tensor."""
    logits = hidden.new_empty(*hidden.shape[:2], len(head) + ROW_PADDING)[..., : len(head)]
    block = CODE_BLOCK if hidden.device.type == "cpu" else len(head)
    for start in range(0, len(head), block):
        some = slice(start, start + block)
        torch.mm(hidden.flatten(0, 1), head[some].T, out=logits.flatten(0, 1)[:, some])
    return logits


class _Piece(NamedTuple):
    """Some rows of the batch between the head's products."""

    logits: Float[Tensor, "rows masked code"]  # in the dtype of the products
    probabilities: Float[Tensor, "rows patch code"]  # of the masked patches alone, if there is no mixing
    mixing: Float[Tensor, "rows masked patch"] | None

    def loss(self, grads: "_Gradients", rows: slice, error: Tensor) -> Float[Tensor, ""]:
        """The sum of the losses of these rows; writes the gradient of the logits to `error`, if that is wanted."""
        exact = torch.promote_types(self.probabilities.dtype, self.logits.dtype)
        target = self.probabilities.to(self.logits.dtype)
        predicted = torch.softmax(self.logits, dim=-1, dtype=exact)
        # the largest probability is exp(max - lse): cheaper here than log_softmax or a logsumexp of its own
        row_lse = self.logits.amax(dim=-1, keepdim=True).to(exact) - predicted.amax(dim=-1, keepdim=True).log()
        if self.mixing is None:
            total = row_lse.sum() - torch.linalg.vecdot(self.logits, target).sum(dtype=exact)
        else:
            overlap = torch.bmm(self.logits, target.transpose(1, 2)).to(exact) - row_lse  # <p_j, log q_i>
            total = -(self.mixing * overlap).sum()
            if grads.mixing is not None:
                grads.mixing[rows] = -overlap
        if grads.want_error:
            predicted = predicted.to(target.dtype)
            if self.mixing is None:
                torch.sub(predicted, target, out=error)
            else:
                torch.baddbmm(predicted, self.mixing.to(target.dtype), target, alpha=-1, out=error)
        return total


class _Gradients(NamedTuple):
    """Sums over the chunks, in the accumulation dtype; None where nobody asks."""

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mixing: Tensor | None

    @classmethod
    def empty(cls, *inputs: Tensor | None, needs: tuple[bool, ...], dtype: torch.dtype) -> "_Gradients":
        """Not filled: the first chunk writes, the others add."""
        return cls(
            *(
                torch.empty_like(x, dtype=dtype) if need and x is not None else None
                for x, need in zip(inputs, needs, strict=True)
            )
        )

    @property
    def want_error(self) -> bool:
        """Whether anything needs the gradient of the prediction's logits."""
        return any(gradient is not None for gradient in (self.features, self.weight, self.bias))

    def add(self, rows: slice, features: Tensor, head: Tensor, error: Tensor) -> None:
        """Add a chunk's share, given its error [rows * masked, code]."""
        kept = int(rows.start > 0)  # 0 for the first chunk, which finds nothing yet
        if self.features is not None:
            self.features[rows] = (error @ head).view(features.shape)
        if self.weight is not None:
            if error.dtype == self.weight.dtype:
                self.weight.addmm_(error.T, features.flatten(0, 1), beta=kept)
            else:
                _accumulate(self.weight, error.T @ features.flatten(0, 1), kept)
        if self.bias is not None:
            _accumulate(self.bias, error.sum(dim=0, dtype=self.bias.dtype), kept)

    def scaled(self, factor: Tensor) -> "_Gradients":
        """The same tensors, multiplied in place."""
        for gradient in self:
            if gradient is not None:
                gradient.mul_(factor)
        return self


def _accumulate(total: Tensor, share: Tensor, kept: int) -> None:
    if kept:
        total.add_(share)
    else:
        total.copy_(share)


def row_chunks(codes: Codes, of: slice | None = None) -> list[slice]:
    """Slices of the batch, or of some rows of it, whose tensors [rows, patch, code] stay under `CHUNK_BYTES`.

    Each has at least one row.
    """
    return _slices(codes, of, codes.logits.shape[1], CHUNK_BYTES)


def _head_chunks(codes: Codes, masked: int) -> list[slice]:
    """Slices of the batch whose predicted logits stay under `HEAD_CHUNK_BYTES`, at least one row each."""
    return _slices(codes, None, masked, HEAD_CHUNK_BYTES)


def _slices(codes: Codes, of: slice | None, patches: int, chunk_bytes: int) -> list[slice]:
    images, _, vocabulary = codes.logits.shape
    of = of or slice(0, images * codes.repeats)
    chunk_bytes = CHUNK_BYTES_ON_GPU if codes.logits.device.type == "cuda" else chunk_bytes
    most = max(1, chunk_bytes // (4 * patches * vocabulary))
    rows = of.stop - of.start
    size = math.ceil(rows / math.ceil(rows / most))  # as equal as can be
    return [slice(start, min(start + size, of.stop)) for start in range(of.start, of.stop, size)]
