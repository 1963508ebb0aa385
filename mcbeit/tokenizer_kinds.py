"""The tokenizers that others have trained: for each kind its model, the keys of its files, and the sizes they tell."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mcbeit.config import Config
from mcbeit.dall_e import DallE, DallEConfig
from mcbeit.tokenizer import Tokenizer
from mcbeit.vqgan import GumbelVQGAN, GumbelVQGANConfig, NearestVQGAN
from mcbeit.vqkd import VQKD, VQKDConfig

FileKind = Literal["vqgan", "vqgan-ema", "dall-e", "vqkd"]
Tensors = Mapping[str, Tensor]

DECODER = "for decoding only"
TRAINING = "for training only"
AVERAGES = "moving averages of the codebook, for training only"


@dataclass(frozen=True)
class TokenizerKind:
    """What is known of one kind. `ignored` maps beginnings of keys to why they are not needed."""

    name: FileKind
    files: str  # what its published files are, for messages
    config: type[Config]
    build: Callable[[Any], Tokenizer]  # from an instance of `config`
    mark: str  # a key that files of this kind have, and none of those listed after it
    sizes: Callable[[Tensors], dict[str, Any]]  # the values of `config`; raises KeyError for a key that is missing
    ignored: Mapping[str, str]


def _vqgan_sizes(tensors: Tensors) -> dict[str, Any]:
    dim = len(tensors["encoder.conv_in.weight"])
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    table = "quantize.proj.weight" if "quantize.proj.weight" in tensors else "quantize.embedding.weight"
    return {
        "vocab_size": len(tensors[table]),
        "embed_dim": len(tensors["encoder.conv_out.weight"]),
        "dim": dim,
        "multipliers": [len(tensors[f"encoder.down.{i}.block.0.conv1.weight"]) // dim for i in range(levels)],
        "num_blocks": _count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
    }


def _dall_e_sizes(tensors: Tensors) -> dict[str, Any]:
    return {
        "vocab_size": len(tensors["blocks.output.conv.w"]),
        "dim": len(tensors["blocks.input.w"]),
        "num_blocks": _count(tensors, r"blocks\.group_1\.block_(\d+)\."),
    }


def _vqkd_sizes(tensors: Tensors) -> dict[str, Any]:
    vocab_size, code_dim = tensors["quantize.embedding.weight"].shape
    dim, _, patch_size, _ = tensors["encoder.patch_embed.proj.weight"].shape
    num_patches = tensors["encoder.pos_embed"].shape[1] - 1
    return {
        "vocab_size": vocab_size,
        "code_dim": code_dim,
        "dim": dim,
        "depth": _count(tensors, r"encoder\.blocks\.(\d+)\."),
        "mlp_ratio": len(tensors["encoder.blocks.0.mlp.fc1.weight"]) / dim,
        "patch_size": patch_size,
        "image_size": round(num_patches**0.5) * patch_size,
    }


def _count(tensors: Tensors, pattern: str) -> int:
    """How many numbered parts there are."""
    return len({found[1] for found in map(re.compile(pattern).match, tensors) if found})


_OF_VQGAN = {"decoder.": DECODER, "post_quant_conv.": DECODER, "loss.": TRAINING, "colorize": TRAINING}
KINDS: dict[str, TokenizerKind] = {
    kind.name: kind
    for kind in (
        TokenizerKind(
            name="vqgan",
            files="a folder with model.yaml and last.ckpt, or one of them",
            config=GumbelVQGANConfig,
            build=GumbelVQGAN,
            mark="quantize.proj.weight",
            sizes=_vqgan_sizes,
            ignored={**_OF_VQGAN, "quantize.embed.": DECODER},
        ),
        TokenizerKind(
            name="dall-e",
            files="encoder.pkl",
            config=DallEConfig,
            build=DallE,
            mark="blocks.input.w",
            sizes=_dall_e_sizes,
            ignored={},
        ),
        TokenizerKind(
            name="vqkd",
            files="vqkd_encoder_*.pth",
            config=VQKDConfig,
            build=VQKD,
            mark="encode_task_layer.0.weight",
            sizes=_vqkd_sizes,
            ignored={
                "decoder.": DECODER,
                "decode_task_layer.": DECODER,
                "loss": TRAINING,
                "teacher": TRAINING,
                "scaling": TRAINING,
                "quantize.cluster_size": AVERAGES,
                "quantize.embedding.cluster_size": AVERAGES,
                "quantize.embedding.embed_avg": AVERAGES,
                "quantize.embedding.initted": TRAINING,
            },
        ),
        TokenizerKind(
            name="vqgan-ema",
            files="a folder with model.yaml and last.ckpt, or one of them",
            config=GumbelVQGANConfig,
            build=NearestVQGAN,
            mark="quantize.embedding.weight",
            sizes=_vqgan_sizes,
            ignored={
                **_OF_VQGAN,
                "quantize.embedding.cluster_size": AVERAGES,
                "quantize.embedding.embed_avg": AVERAGES,
            },
        ),
    )
}


def kind_of(tensors: Tensors) -> TokenizerKind | None:
    """The kind whose files have such keys; None if there is none."""
    return next((kind for kind in KINDS.values() if kind.mark in tensors), None)
