"""Files of tokenizers as their authors publish them, small, with random numbers; and what their code computes.

The functions here are written from what the published models do, not from our modules.
"""

import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


def filled(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of these shapes, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        fan_in = max(value[0].numel(), 1) if len(shape) > 1 else 25
        found[name] = value / fan_in**0.5 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return found


def vqgan_shapes(
    *, dim: int, multipliers: tuple[int, ...], blocks: int, embed_dim: int, vocab_size: int, gumbel: bool
) -> Shapes:
    """The key table of a VQGAN checkpoint, decoder and loss in a few keys."""

    def conv(name: str, out: int, into: int, size: int) -> Shapes:
        return {f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)}

    def norm(name: str, width: int) -> Shapes:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def res(name: str, into: int, out: int) -> Shapes:
        shortcut = conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {}
        first = norm(f"{name}.norm1", into) | conv(f"{name}.conv1", out, into, 3)
        return first | norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out, 3) | shortcut

    def attn(name: str, width: int) -> Shapes:
        found = norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            found |= conv(f"{name}.{part}", width, width, 1)
        return found

    shapes, width = conv("encoder.conv_in", dim, 3, 3), dim
    for level, multiplier in enumerate(multipliers):
        for block in range(blocks):
            shapes |= res(f"encoder.down.{level}.block.{block}", width, dim * multiplier)
            width = dim * multiplier
            if level == len(multipliers) - 1:
                shapes |= attn(f"encoder.down.{level}.attn.{block}", width)
        if level < len(multipliers) - 1:
            shapes |= conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    shapes |= res("encoder.mid.block_1", width, width) | attn("encoder.mid.attn_1", width)
    shapes |= res("encoder.mid.block_2", width, width) | norm("encoder.norm_out", width)
    shapes |= conv("encoder.conv_out", embed_dim, width, 3) | conv("quant_conv", embed_dim, embed_dim, 1)
    if gumbel:
        shapes |= conv("quantize.proj", vocab_size, embed_dim, 1) | {"quantize.embed.weight": (vocab_size, embed_dim)}
    else:
        table = {"weight": (vocab_size, embed_dim), "cluster_size": (vocab_size,), "embed_avg": (vocab_size, embed_dim)}
        shapes |= {f"quantize.embedding.{name}": shape for name, shape in table.items()}
    others = {"loss.discriminator.main.0.weight": (4, 3, 4, 4), "decoder.conv_in.weight": (8, embed_dim, 3, 3)}
    return shapes | others | {"post_quant_conv.bias": (embed_dim,), "colorize": (3, 1, 1, 1)}


SMALL_VQGAN: dict[str, Any] = {"dim": 32, "multipliers": (1, 2), "blocks": 1, "embed_dim": 8, "vocab_size": 24}


def vqgan_yaml(target: str = "taming.models.vqgan.GumbelVQ", **changes: Any) -> dict[str, Any]:
    """The `model.yaml` of SMALL_VQGAN, with what only training reads."""
    encoder = {
        "double_z": False,
        "z_channels": 8,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [32],
        "dropout": 0.0,
    }
    params = {
        "kl_weight": 1e-8,
        "embed_dim": 8,
        "n_embed": 24,
        "ddconfig": encoder | changes,
        "lossconfig": {"target": "taming.modules.losses.DummyLoss"},
    }
    return {"model": {"base_learning_rate": 4.5e-6, "target": target, "params": params}}


@contextmanager
def foreign(*names: str) -> Iterator[dict[str, type]]:
    """Classes of packages that are not installed, by their dotted names, importable in here only."""
    made: dict[str, type] = {}
    modules: list[str] = []
    try:
        for name in names:
            module, _, kind = name.rpartition(".")
            parts = module.split(".")
            for depth in range(1, len(parts) + 1):
                path = ".".join(parts[:depth])
                if path not in sys.modules:
                    sys.modules[path] = types.ModuleType(path)
                    modules.append(path)
            made[name] = type(kind, (), {"__module__": module})
            setattr(sys.modules[module], kind, made[name])
        yield made
    finally:
        for path in modules:
            del sys.modules[path]


def write_vqgan(folder: Path, *, gumbel: bool = True, stream: bool = False) -> dict[str, Tensor]:
    """The folder of a Gumbel VQGAN or EMA-VQ as Lightning leaves it; returns its state dict."""
    state = filled(vqgan_shapes(gumbel=gumbel, **SMALL_VQGAN))
    target = "taming.models.vqgan." + ("GumbelVQ" if gumbel else "EMAVQ")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(vqgan_yaml(target)), encoding="utf-8")
    callback, config = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "omegaconf.dictconfig.DictConfig"
    with foreign(callback, config) as kinds:
        hyper = kinds[config]()
        hyper.__dict__["_content"], hyper.__dict__["_parent"] = (
            {"lr": 1e-4},
            hyper,
        )  # omegaconf's point to their parents
        checkpoint = {
            "epoch": 11,
            "global_step": 5,
            "pytorch-lightning_version": "1.0.8",
            "state_dict": OrderedDict(state),
            "callbacks": {kinds[callback]: {"best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}],
            "lr_schedulers": [],
            "hyper_parameters": hyper,
        }
        torch.save(checkpoint, folder / "last.ckpt", _use_new_zipfile_serialization=not stream)
    return state


def vqgan_vectors(state: dict[str, Tensor], images: Tensor, *, levels: int, blocks: int) -> Tensor:
    """What VQGAN's encoder and `quant_conv` give, [B, dim, h, w]."""

    def conv(name: str, x: Tensor, **options: Any) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def res(name: str, x: Tensor) -> Tensor:
        hidden = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", x)), padding=1)
        hidden = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", hidden)), padding=1)
        return hidden + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in state else x)

    def attn(name: str, x: Tensor) -> Tensor:
        normed = norm(f"{name}.norm", x)
        query, key, value = (conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")
        scores = torch.softmax(query.transpose(1, 2) @ key * x.shape[1] ** -0.5, dim=2)  # over the keys
        return x + conv(f"{name}.proj_out", (value @ scores.transpose(1, 2)).view(x.shape))

    x = conv("encoder.conv_in", images, padding=1)
    for level in range(levels):
        for block in range(blocks):
            x = res(f"encoder.down.{level}.block.{block}", x)
            x = attn(f"encoder.down.{level}.attn.{block}", x) if level == levels - 1 else x
        if level < levels - 1:  # one row below and one column to the right, none above and left
            x = conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = res("encoder.mid.block_2", attn("encoder.mid.attn_1", res("encoder.mid.block_1", x)))
    return conv("quant_conv", conv("encoder.conv_out", swish(norm("encoder.norm_out", x)), padding=1))


class Conv2d(nn.Module):
    """As in dall_e: parameters w and b, padding (kernel - 1) / 2."""

    def __init__(self, into: int, out: int, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(out, into, size, size) / (into * size**2) ** 0.5)
        self.b = nn.Parameter(torch.randn(out) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class EncoderBlock(nn.Module):
    def __init__(self, into: int, out: int, num_layers: int) -> None:
        super().__init__()
        self.post_gain = 1 / num_layers**2
        self.id_path = Conv2d(into, out, 1) if into != out else nn.Identity()
        widths = [into, out // 4, out // 4, out // 4, out]
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i, size in enumerate((3, 3, 3, 1)):
            parts[f"relu_{i + 1}"] = nn.ReLU()
            parts[f"conv_{i + 1}"] = Conv2d(widths[i], widths[i + 1], size)
        self.res_path = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.post_gain * self.res_path(x)


class Encoder(nn.Module):
    """OpenAI's encoder: what encoder.pkl is a pickle of."""

    def __init__(self, *, dim: int, blocks: int = 2, vocab_size: int = 20) -> None:
        super().__init__()
        self.group_count, self.n_hid, self.vocab_size, self.device = 4, dim, vocab_size, torch.device("cpu")
        groups: OrderedDict[str, nn.Module] = OrderedDict(input=Conv2d(3, dim, 7))
        width = dim
        for group, multiplier in enumerate((1, 2, 4, 8)):
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(blocks):
                parts[f"block_{block + 1}"] = EncoderBlock(width, dim * multiplier, 4 * blocks)
                width = dim * multiplier
            if group < 3:
                parts["pool"] = nn.MaxPool2d(kernel_size=2)
            groups[f"group_{group + 1}"] = nn.Sequential(parts)
        groups["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(width, vocab_size, 1)))
        self.blocks = nn.Sequential(groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def write_dall_e(path: Path, *, stream: bool = False) -> Encoder:
    """encoder.pkl: a pickle of the whole module, its classes those of a package that is not installed."""
    torch.manual_seed(0)
    encoder = Encoder(dim=8)
    names = {
        "dall_e.utils.Conv2d": Conv2d,
        "dall_e.encoder.EncoderBlock": EncoderBlock,
        "dall_e.encoder.Encoder": Encoder,
    }
    old = {kind: kind.__module__ for kind in names.values()}
    with foreign(*names), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch looks for the source of the classes
        for name, kind in names.items():
            kind.__module__ = name.rpartition(".")[0]
            setattr(sys.modules[kind.__module__], kind.__name__, kind)
        torch.save(encoder, path, _use_new_zipfile_serialization=not stream)
    for kind, module in old.items():
        kind.__module__ = module
    return encoder


def vqkd_shapes(*, dim: int, depth: int, code_dim: int, vocab_size: int, patch: int, grid: int) -> Shapes:
    """The key table of a VQ-KD checkpoint, decoder and teacher in a few keys."""

    def linear(name: str, out: int, into: int) -> Shapes:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    shapes: Shapes = {
        "encoder.cls_token": (1, 1, dim),
        "encoder.pos_embed": (1, grid**2 + 1, dim),
        "encoder.patch_embed.proj.weight": (dim, 3, patch, patch),
        "encoder.patch_embed.proj.bias": (dim,),
    }
    for block in range(depth):
        name = f"encoder.blocks.{block}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{name}.{norm}.weight": (dim,), f"{name}.{norm}.bias": (dim,)}
        shapes |= {f"{name}.attn.q_bias": (dim,), f"{name}.attn.v_bias": (dim,)}
        shapes |= {f"{name}.attn.qkv.weight": (3 * dim, dim)} | linear(f"{name}.attn.proj", dim, dim)
        shapes |= linear(f"{name}.mlp.fc1", 4 * dim, dim) | linear(f"{name}.mlp.fc2", dim, 4 * dim)
    shapes |= {"encoder.fc_norm.weight": (dim,), "encoder.fc_norm.bias": (dim,)}
    shapes |= linear("encode_task_layer.0", dim, dim) | linear("encode_task_layer.2", code_dim, dim)
    table = {"weight": (vocab_size, code_dim), "embed_avg": (vocab_size, code_dim), "cluster_size": (vocab_size,)}
    shapes |= {f"quantize.embedding.{name}": shape for name, shape in table.items()}
    shapes |= {"quantize.embedding.initted": (1,), "quantize.cluster_size": (vocab_size,)}
    others = {"decoder.cls_token": (1, 1, dim), "decode_task_layer.0.bias": (dim,), "teacher_model.proj": (dim, 8)}
    return shapes | others | {"scaling_layer.scale_kd": (1, 3, 1, 1), "loss_scale": (1,)}


SMALL_VQKD: dict[str, Any] = {"dim": 64, "depth": 2, "code_dim": 4, "vocab_size": 24, "patch": 4, "grid": 4}


def write_vqkd(path: Path, **changes: Any) -> dict[str, Tensor]:
    """A checkpoint of VQ-KD; returns its state dict."""
    state = filled(vqkd_shapes(**{**SMALL_VQKD, **changes}))
    torch.save({"model": state, "epoch": 99}, path)
    return state


def vqkd_directions(state: dict[str, Tensor], images: Tensor, *, depth: int, heads: int) -> Tensor:
    """The unit vector of each patch, [B, patch, code_dim]."""
    dim = state["encoder.cls_token"].shape[-1]
    patch = state["encoder.patch_embed.proj.weight"].shape[-1]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    weight, bias = state["encoder.patch_embed.proj.weight"], state["encoder.patch_embed.proj.bias"]
    x = F.conv2d(images, weight, bias, stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([state["encoder.cls_token"].expand(len(x), -1, -1), x], dim=1) + state["encoder.pos_embed"]
    for block in range(depth):
        name = f"encoder.blocks.{block}"
        biases = torch.cat([state[f"{name}.attn.q_bias"], torch.zeros(dim), state[f"{name}.attn.v_bias"]])
        joint = F.linear(norm(f"{name}.norm1", x), state[f"{name}.attn.qkv.weight"], biases)
        query, key, value = joint.view(len(x), -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(query * (dim // heads) ** -0.5 @ key.transpose(-1, -2), dim=-1)
        x = x + linear(f"{name}.attn.proj", (scores @ value).transpose(1, 2).reshape(x.shape))
        x = x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))))
    x = norm("encoder.fc_norm", x[:, 1:])
    x = linear("encode_task_layer.2", torch.tanh(linear("encode_task_layer.0", x)))
    return x / x.norm(dim=-1, keepdim=True)
