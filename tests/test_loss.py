import math
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mcbeit.loss
from mcbeit.loss import Codes, multi_choice_loss, row_chunks
from mcbeit.targets import gather_patches, masked_patch_ids, mixing_weights, patch_affinity
from mcbeit.vit import truncated_normal

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # relative; of a gradient in the Euclidean norm


class Options(NamedTuple):
    temperature: float = 0.7
    refine_weight: float = 0.2
    similarity_temperature: float = 1.0
    affinity: Literal["own", "detached", "teacher"] = "own"  # whose features, and whether they learn by it
    hard: bool = False


class Problem(NamedTuple):
    """A batch as it comes out of a backbone and a tokenizer; `learned` want gradients."""

    features: Tensor  # batch patch dim
    weight: Tensor  # code dim
    bias: Tensor  # code
    logits: Tensor  # image patch code
    mask: Tensor  # batch patch, as many True in each row
    teacher: Tensor  # batch patch dim

    @property
    def learned(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.features, self.weight, self.bias


def make_problem(
    images: int = 3,
    *,
    repeats: int = 1,
    patches: int = 12,
    masked: int = 7,
    vocabulary: int = 11,
    dim: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    batch = images * repeats
    order = torch.rand(batch, patches, generator=generator).argsort(dim=1)
    return Problem(
        features=normal(batch, patches, dim).requires_grad_(),
        weight=normal(vocabulary, dim).requires_grad_(),
        bias=normal(vocabulary).requires_grad_(),
        logits=2 * normal(images, patches, vocabulary),
        mask=torch.zeros(batch, patches, dtype=torch.bool).scatter_(1, order[:, :masked], True),
        teacher=normal(batch, patches, dim),
    )


def dense(problem: Problem, options: Options) -> Tensor:
    """Equations (1) to (5) in the official order of work: everything for all patches, at last the masked rows."""
    features, weight, bias, logits, mask, teacher = problem
    logits = logits.repeat_interleave(len(features) // len(logits), dim=0)
    probabilities = torch.softmax(logits / options.temperature, dim=-1)  # (1)
    if options.hard:
        probabilities = F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits)
    unit = F.normalize({"own": features, "detached": features.detach(), "teacher": teacher}[options.affinity], dim=-1)
    similarity = torch.bmm(unit, unit.transpose(1, 2))  # (2)
    affinity = torch.softmax(similarity / options.similarity_temperature, dim=-1)  # (3)
    refined = torch.bmm(affinity, probabilities)
    target = options.refine_weight * refined + (1 - options.refine_weight) * probabilities  # (4)
    log_prediction = F.log_softmax(F.linear(features, weight, bias), dim=-1)
    return -(target[mask] * log_prediction[mask]).sum(dim=-1).mean()  # (5)


def factored(problem: Problem, options: Options) -> Tensor:
    """The same by the code under test, put together as training does."""
    features, weight, bias, logits, mask, teacher = problem
    ids = masked_patch_ids(mask)
    codes = Codes(logits, options.temperature, options.hard, repeats=len(features) // len(logits))
    mixing = None
    if options.refine_weight > 0:
        source = {"own": features, "detached": features.detach(), "teacher": teacher}[options.affinity]
        affinity = patch_affinity(source, ids, similarity_temperature=options.similarity_temperature)
        mixing = mixing_weights(affinity, ids, refine_weight=options.refine_weight)
    return multi_choice_loss(gather_patches(features, ids), weight, bias, codes, ids, mixing)


def assert_same(problem: Problem, options: Options, tolerance: float) -> None:
    """Value and gradients of the factored form are those of the dense form."""
    found, wanted = factored(problem, options), dense(problem, options)
    torch.testing.assert_close(found.to(wanted.dtype), wanted, rtol=tolerance, atol=0)
    gradients = zip(*(torch.autograd.grad(loss, problem.learned) for loss in (found, wanted)), strict=True)
    for name, (gradient, wanted_gradient) in zip(("features", "weight", "bias"), gradients, strict=True):
        assert gradient.dtype == wanted_gradient.dtype
        assert (gradient - wanted_gradient).norm() <= tolerance * wanted_gradient.norm(), name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("affinity", ["own", "detached", "teacher"])
@pytest.mark.parametrize("similarity_temperature", [1.0, 0.1])
@pytest.mark.parametrize("refine_weight", [0.0, 0.2, 1.0])
def test_multi_choice_loss__equals_the_dense_form_in_value_and_all_gradients(
    refine_weight: float, similarity_temperature: float, affinity: Any, hard: bool, dtype: torch.dtype
) -> None:
    options = Options(0.7, refine_weight, similarity_temperature, affinity, hard)
    assert_same(make_problem(dtype=dtype), options, TOLERANCE[dtype])


@given(st.data())
def test_multi_choice_loss__equals_the_dense_form_whatever_the_sizes_and_chunks(data: st.DataObject) -> None:
    images, repeats, patches = (data.draw(st.integers(1, top)) for top in (4, 3, 9))
    masked = data.draw(st.integers(1, patches))
    problem = make_problem(images, repeats=repeats, patches=patches, masked=masked, seed=data.draw(st.integers(0, 99)))
    temperature, refine_weight = data.draw(st.sampled_from([0.05, 1.0, 30.0])), data.draw(st.floats(0, 1))
    options = Options(temperature, refine_weight, hard=data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        row_bytes = 4 * problem.logits[0].numel()
        patch.setattr(mcbeit.loss, "CHUNK_BYTES", row_bytes * data.draw(st.integers(1, 13)))
        patch.setattr(mcbeit.loss, "HEAD_CHUNK_BYTES", row_bytes * data.draw(st.integers(1, 13)))
        patch.setattr(mcbeit.loss, "CODE_BLOCK", data.draw(st.integers(1, 12)))
        assert_same(problem, options, 1e-12)


@pytest.mark.parametrize("refine_weight", [0.0, 0.2])
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_multi_choice_loss__does_not_depend_on_the_chunks(monkeypatch, repeats: int, refine_weight: float) -> None:
    problem, options = make_problem(5, repeats=repeats), Options(refine_weight=refine_weight)
    codes, rows = Codes(problem.logits, 0.7, repeats=repeats), 5 * repeats
    assert row_chunks(codes) == [slice(0, rows)]
    whole = factored(problem, options)
    monkeypatch.setattr(mcbeit.loss, "CHUNK_BYTES", 4 * (4 * problem.logits[0].numel()))
    chunks = row_chunks(codes)
    assert len(chunks) == math.ceil(rows / 4)
    assert [row for chunk in chunks for row in range(rows)[chunk]] == list(range(rows))
    assert max(chunk.stop - chunk.start for chunk in chunks) <= 4
    torch.testing.assert_close(factored(problem, options), whole, rtol=1e-14, atol=0)
    assert_same(problem, options, 1e-12)
    monkeypatch.setattr(mcbeit.loss, "CHUNK_BYTES", 1)
    monkeypatch.setattr(mcbeit.loss, "HEAD_CHUNK_BYTES", 1)
    assert row_chunks(codes) == [slice(i, i + 1) for i in range(rows)]  # never less than a row
    assert_same(problem, options, 1e-12)


def test_multi_choice_loss__of_one_masked_patch_by_hand() -> None:
    """One image of two patches and two codes, the first patch masked; both patches alike, so that W is 1/2."""
    ids = torch.tensor([[0]])
    codes = Codes(torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]]), temperature=1.0)  # p = (3/4, 1/4), (1/2, 1/2)
    mixing = mixing_weights(torch.full((1, 1, 2), 0.5), ids, refine_weight=0.4)  # A = (0.8, 0.2)
    weight, bias = torch.zeros(2, 1), torch.tensor([math.log(9.0), 0.0])  # q = (9/10, 1/10)
    loss = multi_choice_loss(torch.ones(1, 1, 1), weight, bias, codes, ids, mixing)
    assert loss.item() == pytest.approx(-0.7 * math.log(0.9) - 0.3 * math.log(0.1), rel=1e-6)


@pytest.mark.parametrize("options", [Options(), Options(affinity="teacher"), Options(refine_weight=0.0)])
def test_multi_choice_loss__has_the_gradient_of_finite_differences(options: Options) -> None:
    problem = make_problem(2)
    gradients = torch.autograd.grad(factored(problem, options), problem.learned)
    for name, gradient in zip(("features", "weight", "bias"), gradients, strict=True):
        inputs = getattr(problem, name)
        step = 1e-5 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            up, down = (factored(problem._replace(**{name: inputs + sign * step}), options) for sign in (1, -1))
        assert (up - down).item() / 2 == pytest.approx((gradient * step).sum().item(), rel=1e-6), name


def test_multi_choice_loss__learns_through_the_affinity_unless_stopped() -> None:
    problem = make_problem()
    visible = {}
    for affinity in ("own", "detached", "teacher"):
        (gradient,) = torch.autograd.grad(factored(problem, Options(affinity=affinity)), problem.features)
        visible[affinity] = gradient[~problem.mask].abs().max().item()
    assert visible["own"] > 1e-4  # a visible patch matters only as a neighbour
    assert visible["detached"] == visible["teacher"] == 0


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("refine_weight", [0.0, 0.2, 1.0])
def test_multi_choice_loss__inside_autocast_is_the_dense_form_up_to_rounding(refine_weight: float, hard: bool) -> None:
    problem = make_problem(8, vocabulary=64, dim=32, dtype=torch.float32)
    options = Options(refine_weight=refine_weight, hard=hard)
    with torch.autocast("cpu", torch.bfloat16):
        loss = factored(problem, options)
    assert loss.dtype == torch.float32
    assert 0 < abs(loss.item() / dense(problem, options).item() - 1) < 2e-3  # not 0: the products were in bfloat16
    gradients = torch.autograd.grad(loss, problem.learned)
    for found, wanted in zip(gradients, torch.autograd.grad(dense(problem, options), problem.learned), strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 2e-2 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_multi_choice_loss__takes_features_and_codes_in_half_precision(dtype: torch.dtype) -> None:
    problem = make_problem(dtype=torch.float32)
    wanted = dense(problem, Options()).item()
    features = problem.features.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = factored(problem._replace(features=features, logits=problem.logits.to(dtype)), Options())
    loss.backward()
    assert loss.item() == pytest.approx(wanted, rel=1e-2)
    assert features.grad is not None
    assert features.grad.dtype == dtype


def test_multi_choice_loss__can_be_differentiated_once() -> None:
    problem = make_problem()
    loss = factored(problem, Options())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        loss.backward()


def test_multi_choice_loss__scales_its_gradients_with_the_upstream_gradient() -> None:
    problem = make_problem()
    once, thrice = (torch.autograd.grad(k * factored(problem, Options()), problem.learned) for k in (1.0, 3.0))
    for gradient, larger in zip(once, thrice, strict=True):
        torch.testing.assert_close(larger, 3 * gradient)


class Allocations(TorchDispatchMode):
    """The shapes of all new tensors, backward pass included; views and changes in place are none."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        values = result if isinstance(result, tuple | list) else [result]
        for value, returned in zip(values, func._schema.returns, strict=True):
            if isinstance(value, Tensor) and returned.alias_info is None:
                self.shapes.append(tuple(value.shape))
        return result

    @property
    def largest(self) -> int:
        return max(math.prod(shape) for shape in self.shapes)


@pytest.mark.parametrize("refine_weight", [0.0, 0.2])
@pytest.mark.parametrize("repeats", [1, 2])
def test_multi_choice_loss__holds_nothing_of_vocabulary_size_for_more_than_a_chunk(
    monkeypatch, repeats: int, refine_weight: float
) -> None:
    patches, vocabulary = 6, 500
    problem = make_problem(6, repeats=repeats, patches=patches, vocabulary=vocabulary, masked=2)
    monkeypatch.setattr(mcbeit.loss, "CHUNK_BYTES", 2 * 4 * patches * vocabulary)
    monkeypatch.setattr(mcbeit.loss, "HEAD_CHUNK_BYTES", 2 * 4 * 2 * vocabulary)
    with Allocations() as made:
        factored(problem, Options(refine_weight=refine_weight)).backward()
    # where nothing is mixed and no row repeated, masked patches alone are read: the head's gradient is larger
    reads_all = refine_weight > 0 or repeats > 1
    assert made.largest == (2 * patches * vocabulary if reads_all else problem.weight.numel())
    with Allocations() as made:
        dense(problem, Options(refine_weight=refine_weight)).backward()
    assert made.largest == 6 * repeats * patches * vocabulary


def test_multi_choice_loss__asks_the_head_about_masked_patches_only() -> None:
    problem = make_problem(2, patches=20, masked=3, vocabulary=500)
    with Allocations() as made:
        factored(problem, Options()).backward()
    assert (2, 3, 500 + mcbeit.loss.ROW_PADDING) in made.shapes  # the prediction
    assert (2, 20, 500) in made.shapes  # the probabilities: masked patches choose from all patches
    with Allocations() as probabilities:
        Codes(problem.logits, 0.7).probabilities(slice(0, 2))
    assert made.shapes.count((2, 20, 500)) == probabilities.shapes.count((2, 20, 500))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_multi_choice_loss__makes_no_gradients_in_evaluation(context: Any) -> None:
    problem = make_problem()
    with Allocations() as training:
        wanted = factored(problem, Options())
    with Allocations() as evaluation, context():
        loss = factored(problem, Options())
    assert loss.item() == wanted.item()
    assert not loss.requires_grad
    assert problem.weight.shape in training.shapes
    assert problem.weight.shape not in evaluation.shapes


@pytest.mark.parametrize("repeats", [1, 2])
def test_multi_choice_loss__starts_at_the_logarithm_of_the_vocabulary(repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(64, 8192)
    truncated_normal(head.weight)
    nn.init.zeros_(head.bias)
    features = F.layer_norm(torch.randn(2 * repeats, 4, 64, generator=generator), (64,))
    codes = Codes(6 * torch.randn(2, 9, 8192, generator=generator), temperature=4.0, repeats=repeats)
    ids = torch.tensor([[0, 2, 3, 8]]).expand(2 * repeats, -1)
    mixing = mixing_weights(torch.full((2 * repeats, 4, 9), 1 / 9), ids, refine_weight=0.2)
    assert multi_choice_loss(features, head.weight, head.bias, codes, ids, mixing).item() == pytest.approx(
        9.011, abs=0.01
    )
