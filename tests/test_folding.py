"""The folded BEiT is the same function."""

from typing import Any

import pytest
import torch
from backbones import backbone, scramble
from timm.models.beit import Beit

from mcbeit.bodies import BeitBody
from mcbeit.folding import FoldedBeit


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias_tables": "per-block"},
        {"layer_scale": 0.0},
        {"position": "learned"},
        {"position": "relative+learned", "final_norm": "pooled"},
    ],
    ids=str,
)
def test_folded__gives_the_tokens_of_the_model(options: dict[str, Any], norm: bool) -> None:
    model = backbone(**options)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = BeitBody(model).tokens(images, (1, 3), norm=norm)
        found = FoldedBeit(model).tokens(images, (1, 3), norm=norm)
    for one, other in zip(wanted, found, strict=True):
        assert one.cls is not None
        assert other.cls is not None
        assert torch.allclose(one.cls, other.cls, atol=1e-5)
        assert torch.allclose(one.patches, other.patches, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"use_shared_rel_pos_bias": True}, {"swiglu_mlp": True}, {"scale_mlp": True}], ids=str
)
def test_folded__of_what_only_timm_has(options: dict[str, Any]) -> None:
    model = Beit(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, init_values=0.1,
        use_rel_pos_bias=True, qkv_bias="swiglu_mlp" not in options, **options,
    )  # fmt: skip
    scramble(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        (wanted,) = BeitBody(model).tokens(images, (2,), norm=True)
        (found,) = FoldedBeit(model).tokens(images, (2,), norm=True)
    assert torch.allclose(wanted.patches, found.patches, atol=1e-4)


def test_folding__leaves_the_model_as_it_is() -> None:
    model = backbone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    FoldedBeit(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
