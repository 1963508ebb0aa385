import math
from typing import Any

import pytest
import torch
from test_loss import Options, Problem, dense
from torch import Tensor

import mcbeit.loss
from mcbeit.config import dump, validate
from mcbeit.errors import ConfigError
from mcbeit.loss import Codes
from mcbeit.masked import MaskedImageModel, ObjectiveConfig, measure, summarise
from mcbeit.targets import masked_patch_ids
from mcbeit.vit import ModelConfig, VisionTransformer

VOCABULARY, PATCHES, MASKED = 20, 16, 6


def make_model(layer_scale: float = 0.1, **objective: Any) -> MaskedImageModel:
    """A tiny model in float64 whose head has learned something."""
    config = ModelConfig(dim=24, depth=2, num_heads=2, patch_size=4, drop_path=0.0, layer_scale=layer_scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedImageModel(VisionTransformer(config, image_size=16), VOCABULARY, ObjectiveConfig(**objective))
        with torch.no_grad():
            model.lm_head.weight.normal_(std=0.5)
            model.lm_head.bias.normal_()
    return model.double()


def make_batch(images: int = 3, repeats: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images (each `repeats` times), masks, and the tokenizer's logits, one for each different image."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, 3, 16, 16, generator=generator, dtype=torch.float64)
    order = torch.rand(images * repeats, PATCHES, generator=generator).argsort(dim=1)
    mask = torch.zeros(len(order), PATCHES, dtype=torch.bool).scatter_(1, order[:, :MASKED], True)
    logits = 3 * torch.randn(images, PATCHES, VOCABULARY, generator=generator, dtype=torch.float64)
    return pixels.repeat_interleave(repeats, dim=0), mask, logits


def as_problem(model: MaskedImageModel, images: Tensor, mask: Tensor, logits: Tensor, teacher: Tensor) -> Problem:
    """The same batch for the dense reference: features of the masked images, and the head."""
    features = model.backbone.forward_tokens(images, mask)[:, 1:]
    return Problem(features, model.lm_head.weight, model.lm_head.bias, logits, mask, teacher)


# MaskedImageModel


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ({}, Options()),
        ({"refine_weight": 0.0}, Options(refine_weight=0.0)),
        ({"refine_weight": 1.0, "similarity_temperature": 0.1}, Options(refine_weight=1.0, similarity_temperature=0.1)),
        ({"detach_similarity": True}, Options(affinity="detached")),
        ({"affinity": "ema"}, Options(affinity="teacher")),
        ({"targets": "hard"}, Options(hard=True)),
        ({"targets": "hard", "refine_weight": 0.0}, Options(hard=True, refine_weight=0.0)),
    ],
)
def test_masked_image_model__loss_and_gradients_are_those_of_the_dense_form(
    objective: dict[str, Any], options: Options, repeats: int
) -> None:
    model = make_model(**objective)
    images, mask, logits = make_batch(repeats=repeats)
    teacher = model.backbone.forward_tokens(images)[:, 1:].detach()
    codes = Codes(logits, options.temperature, model.objective.hard, repeats)
    ema = teacher if options.affinity == "teacher" else None
    loss = model(images, mask, masked_patch_ids(mask), codes, ema).loss
    wanted = dense(as_problem(model, images, mask, logits, teacher), options)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    gradients, wanted_gradients = (torch.autograd.grad(x, list(model.parameters())) for x in (loss, wanted))
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):  # every parameter learns
        assert wanted_gradient.norm() > 0
        assert (gradient - wanted_gradient).norm() <= 1e-9 * wanted_gradient.norm()


def test_masked_image_model__starts_at_the_logarithm_of_the_vocabulary() -> None:
    backbone = VisionTransformer(ModelConfig(dim=24, depth=1, num_heads=2, patch_size=4), image_size=16)
    model = MaskedImageModel(backbone, 8192, ObjectiveConfig())
    _, mask, _ = make_batch(2)
    codes = Codes(6 * torch.randn(2, PATCHES, 8192, generator=torch.Generator().manual_seed(0)), temperature=4.0)
    loss = model(torch.zeros(2, 3, 16, 16), mask, masked_patch_ids(mask), codes).loss
    assert loss.item() == pytest.approx(9.011, abs=0.01)


@pytest.mark.parametrize("refine_weight", [0.0, 0.3])
def test_masked_image_model__gives_what_measurements_need_without_gradients(refine_weight: float) -> None:
    images, mask, logits = make_batch()
    model = make_model(refine_weight=refine_weight)
    prediction = model(images, mask, masked_patch_ids(mask), Codes(logits, temperature=1.0))
    assert prediction.loss.requires_grad
    assert not prediction.features.requires_grad
    assert (prediction.features == model.backbone.forward_tokens(images, mask)[:, 1:]).all()
    assert (prediction.mixing is None) == (refine_weight == 0)
    if prediction.mixing is not None:
        assert not prediction.mixing.requires_grad
        torch.testing.assert_close(prediction.mixing.sum(dim=-1), torch.ones(3, MASKED, dtype=torch.float64))


# measure


def measured(model: MaskedImageModel, images: Tensor, mask: Tensor, codes: Codes) -> dict[str, float]:
    ids = masked_patch_ids(mask)
    found = summarise([measure(model, model(images, mask, ids, codes), codes, ids)])
    assert all(value.shape == () and not value.requires_grad for value in found.values())
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("targets", ["multi-choice", "hard"])
@pytest.mark.parametrize("refine_weight", [0.0, 0.2])
def test_measure__by_hand(monkeypatch, refine_weight: float, targets: str, repeats: int, chunk_bytes: int) -> None:
    monkeypatch.setattr(mcbeit.loss, "CHUNK_BYTES", chunk_bytes)
    model = make_model(refine_weight=refine_weight, targets=targets)
    images, mask, logits = make_batch(repeats=repeats)
    with torch.no_grad():
        features = model.backbone.forward_tokens(images, mask)[:, 1:]
        guesses = model.lm_head(features).argmax(dim=-1)
    logits_of_rows = logits.repeat_interleave(repeats, dim=0)
    hits, entropies, spreads = 0, [], []
    for row, patch in mask.nonzero().tolist():
        hits += int(guesses[row, patch] == logits_of_rows[row, patch].argmax())
        unit = features[row] / features[row].norm(dim=-1, keepdim=True)
        affinity = torch.softmax(unit @ unit[patch], dim=0)
        choices = torch.softmax(logits_of_rows[row] / 0.7, dim=-1)
        if targets == "hard":
            choices = torch.eye(VOCABULARY, dtype=torch.float64)[logits_of_rows[row].argmax(dim=-1)]
        target = refine_weight * affinity @ choices + (1 - refine_weight) * choices[patch]
        entropies.append(-sum(p * math.log(p) for p in target.tolist() if p))
        spreads.append(math.exp(-sum(p * math.log(p) for p in affinity.tolist())))
    best = logits.argmax(dim=-1).flatten().tolist()
    shares = [best.count(code) / len(best) for code in set(best)]
    wanted = {
        "masked_accuracy": hits / len(entropies),
        "target_entropy": sum(entropies) / len(entropies),
        "codes_used": len(set(best)),
        "code_perplexity": math.exp(-sum(share * math.log(share) for share in shares)),
        **({"neighbours": sum(spreads) / len(spreads)} if refine_weight else {}),
    }
    found = measured(model, images, mask, Codes(logits, 0.7, targets == "hard", repeats))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_measure__of_a_collapsed_and_of_an_even_tokenizer() -> None:
    model = make_model()
    images, mask, logits = make_batch(5)
    collapsed = torch.zeros_like(logits)
    collapsed[..., 3] = 100.0
    found = measured(model, images, mask, Codes(collapsed, temperature=1.0))
    assert (found["codes_used"], found["code_perplexity"]) == (1, pytest.approx(1))
    assert found["target_entropy"] == pytest.approx(0, abs=1e-6)
    codes = torch.arange(5 * PATCHES).view(5, PATCHES) % VOCABULARY
    even = torch.nn.functional.one_hot(codes, VOCABULARY).double()
    found = measured(model, images, mask, Codes(even, temperature=1e6))
    assert (found["codes_used"], found["code_perplexity"]) == (VOCABULARY, pytest.approx(VOCABULARY))
    assert found["target_entropy"] == pytest.approx(math.log(VOCABULARY))


def test_measure__accuracy_of_a_head_that_knows() -> None:
    model = make_model()
    images, mask, logits = make_batch()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.arange(VOCABULARY))  # always the last code
    logits[mask] = 0.0
    logits[..., -1][mask] = 1.0
    assert measured(model, images, mask, Codes(logits, temperature=1.0))["masked_accuracy"] == 1
    logits[..., 0] = 50.0
    assert measured(model, images, mask, Codes(logits, temperature=1.0))["masked_accuracy"] == 0


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_measure__after_a_forward_inside_autocast(dtype: torch.dtype, layer_scale: float) -> None:
    model, ids = make_model(layer_scale).float(), masked_patch_ids(make_batch()[1])
    images, mask, logits = make_batch()
    codes = Codes(logits.to(dtype), temperature=1.0)
    with torch.autocast("cpu", dtype):
        prediction = model(images.float(), mask, ids, codes)
    assert prediction.loss.dtype == torch.float32
    wanted = measured(model, images.float(), mask, Codes(logits.float(), temperature=1.0))
    found = {name: value.item() for name, value in summarise([measure(model, prediction, codes, ids)]).items()}
    assert found == pytest.approx(wanted, rel=0.05, abs=2 / (3 * MASKED))


def test_summarise__of_parts_is_that_of_the_whole() -> None:
    model, (images, mask, logits) = make_model(), make_batch()
    whole = measured(model, images, mask, Codes(logits, temperature=1.0))
    parts = []
    for row in range(3):
        rows = slice(row, row + 1)
        codes, ids = Codes(logits[rows], temperature=1.0), masked_patch_ids(mask[rows])
        parts.append(measure(model, model(images[rows], mask[rows], ids, codes), codes, ids))
    assert {name: value.item() for name, value in summarise(parts).items()} == pytest.approx(whole)


# ObjectiveConfig


def test_objective_config__is_the_published_objective_by_default() -> None:
    config = ObjectiveConfig()
    assert (config.targets, config.hard, config.affinity) == ("multi-choice", False, "online")
    assert (config.refine_weight, config.similarity_temperature, config.detach_similarity) == (0.2, 1.0, False)
    assert ObjectiveConfig(targets="hard").hard


def test_objective_config__omega_is_another_name_of_the_refine_weight() -> None:
    config = validate(ObjectiveConfig, {"omega": 0.4})
    assert config.refine_weight == 0.4
    assert "refine_weight: 0.4\n" in dump(config)
    assert "omega" not in dump(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 1.0, "target_perplexity": 3.0}, "objective.target_perplexity exclude each other"),
        ({"refine_weight": 0.2, "omega": 0.2}, "objective.omega is another name of objective.refine_weight"),
        ({"refine_weight": 1.1}, "refine_weight: input should be less than or equal to 1"),
        ({"omega": -0.1}, "refine_weight: input should be greater than or equal to 0"),
        ({"temperature": 0.0}, "temperature: input should be greater than 0"),
        ({"target_perplexity": 1.0}, "target_perplexity: input should be greater than 1"),
        ({"similarity_temperature": 0.0}, "similarity_temperature: input should be greater than 0"),
        ({"ema_decay": 1.0}, "ema_decay: input should be less than 1"),
        ({"targets": "soft"}, "targets: input should be 'multi-choice' or 'hard'"),
        ({"tau": 1.0}, "unknown key 'tau'"),
    ],
)  # fmt: skip
def test_objective_config__refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(ObjectiveConfig, values)
    assert message in str(error.value)
