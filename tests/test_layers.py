"""The law of the house: who may import whom, and what is not loaded before it is used."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "mcbeit": set[str](),
    "mcbeit.serve": {"mcbeit"},
    "mcbeit.bench": {"mcbeit", "mcbeit.serve.client"},
    "mcbeit.cli": {"mcbeit", "mcbeit.serve", "mcbeit.bench"},
}
ONLY_IN = {
    "ray.train": {"mcbeit/distributed.py"},
    "ray.serve": {"serve/deployment.py"},
    "pycocotools": {"mcbeit/detection/rle.py", "mcbeit/detection/coco_scores.py"},
    "faster_coco_eval": {"mcbeit/detection/coco_scores.py"},
    "fsspec": {"mcbeit/sources/remote.py"},
    "pyarrow": {
        "mcbeit/sources/parquet_table.py",
        "mcbeit/storage.py",
        "mcbeit/embedding_parquet.py",
        "mcbeit/index_tables.py",
    },
    "lancedb": {"mcbeit/index_tables.py"},
    "tifffile": {"mcbeit/multichannel.py"},
    "scipy": {"mcbeit/sources/imagenet_labels.py", "bench/corruptions.py"},
    "faiss": {"mcbeit/index.py", "serve/store_vectors.py", "bench/index.py"},
}
NOT_LOADED_WITH = {  # not by the module itself, nor by anything that it loads
    "mcbeit": {"torch", "torchvision", "timm", "ray", "pyarrow", "tifffile", "onnx", "onnxruntime", "faiss"},
    "mcbeit.cli": {"torch", "torchvision", "timm", "ray", "pyarrow", "tifffile", "onnx", "onnxruntime", "faiss"},
    "mcbeit.serve": {"torch", "torchvision", "timm"},
}

Graph = dict[str, list[tuple[str, bool]]]  # module -> (dotted target, is it loaded together with the module)


def sources(root: Path) -> dict[str, Path]:
    """Every module of the four folders by its import name; the links inside mcbeit/ are not followed."""
    found = {}
    for folder in ("mcbeit", "serve", "bench", "cli"):
        for parent, _, files in os.walk(root / folder):
            for path in (Path(parent, file) for file in files if file.endswith(".py")):
                parts = path.relative_to(root if folder == "mcbeit" else root / folder).with_suffix("").parts
                parts = parts if folder == "mcbeit" else ("mcbeit", folder, *parts)
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(module: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Every import, relative ones resolved; `from a import b` is a.b, and so are `a.b` in code and import_module."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    late = {id(inner) for node in ast.walk(tree) if _runs_later(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((alias.name, id(node) not in late) for alias in node.names)
            case ast.ImportFrom():
                base = ".".join([*package[: len(package) + 1 - node.level]] * (node.level > 0) + [node.module or ""])
                yield from ((f"{base.strip('.')}.{alias.name}", id(node) not in late) for alias in node.names)
            case ast.Attribute(value=ast.Name(id="ray")):
                yield f"ray.{node.attr}", False
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name, id(node) not in late


def _runs_later(node: ast.AST) -> bool:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def room(name: str) -> str:
    """The one of the four that a module belongs to."""
    return max((package for package in MAY_IMPORT if within(name, package)), key=len)


def loaded_with(module: str, graph: Graph) -> set[str]:
    """Everything that is loaded together with `module`, over any number of steps; a.b.c also loads a.b and a."""
    seen, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name and name not in seen:
            seen.add(name)
            waiting += [name.rpartition(".")[0], *(target for target, early in graph.get(name, []) if early)]
    return seen


def violations(root: Path) -> list[str]:
    """One line for each broken rule."""
    files = sources(root)
    graph: Graph = {name: list(imports(name, path)) for name, path in files.items()}
    found = []
    for module, targets in graph.items():
        here, path = room(module), files[module].relative_to(root).as_posix()
        for target in sorted({target for target, _ in targets}):
            if target.split(".")[0] in ("serve", "bench", "cli"):
                found.append(f"{path}: '{target}' is not a module of ours, write mcbeit.{target}")
            if within(target, "mcbeit") and room(target) != here:
                allowed = [name for name in MAY_IMPORT[here] if within(target, name) and room(target) == room(name)]
                found += [] if allowed else [f"{path}: {here} may not import {target}"]
            found += [f"{path}: {name} only in {homes}" for name, homes in ONLY_IN.items()
                      if within(target, name) and path not in homes]  # fmt: skip
        if here != "mcbeit" or module == "mcbeit":
            heavy = {name.split(".")[0] for name in loaded_with(module, graph)} & NOT_LOADED_WITH.get(here, set())
            found += [f"{path}: {name} is loaded with it" for name in sorted(heavy)]
    return found


def test_layers() -> None:
    assert violations(ROOT) == []
    assert {"mcbeit", "mcbeit.config", "mcbeit.serve", "mcbeit.bench", "mcbeit.cli.main"} <= set(sources(ROOT))


@pytest.mark.parametrize(
    "module", ["mcbeit.index", "mcbeit.index_export", "mcbeit.viz", "mcbeit.prepare", "mcbeit.detection.rle"]
)
def test_layers__what_the_service_may_reuse_loads_no_torch(module: str) -> None:
    graph: Graph = {name: list(imports(name, path)) for name, path in sources(ROOT).items()}
    loaded = {name.split(".")[0] for name in loaded_with(module, graph)}
    assert "numpy" in loaded
    assert loaded & {"torch", "torchvision", "timm", "ray", "pyarrow", "faiss", "lancedb", "pycocotools"} == set()


LAWFUL = {
    "mcbeit/__init__.py": "",
    "mcbeit/vit.py": "import torch\nimport timm",
    "mcbeit/distributed.py": "import ray\nimport ray.train\nfrom ray.train import Checkpoint\nray.train.report({})",
    "serve/__init__.py": "",
    "serve/client.py": "from mcbeit.errors import McbeitError\nfrom . import contracts",
    "serve/deployment.py": "from ray import serve",
    "serve/store_vectors.py": "def build():\n    import faiss",
    "serve/session.py": "def torch_session():\n    import torch",
    "bench/__init__.py": "",
    "mcbeit/detection/rle.py": "def encode():\n    import pycocotools.mask",
    "mcbeit/detection/coco_scores.py": "def scores():\n    from pycocotools.coco import COCO",
    "bench/detection.py": "import torch",
    "bench/retrieval.py": "from mcbeit.serve.client import Client\nfrom ..serve import client",
    "cli/__init__.py": "",
    "cli/train.py": "if TYPE_CHECKING:\n    import torch\ndef command():\n    import mcbeit.vit",
}  # fmt: skip


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_violations__none_in_a_lawful_tree(tmp_path: Path) -> None:
    assert violations(plant(tmp_path, LAWFUL)) == []


def test_violations__links_are_not_walked_twice(tmp_path: Path) -> None:
    plant(tmp_path, {**LAWFUL, "bench/bad.py": "import serve"})
    for folder in ("serve", "bench", "cli"):
        (tmp_path / "mcbeit" / folder).symlink_to(f"../{folder}")
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("mcbeit/bad.py", "import mcbeit.serve", "mcbeit may not import mcbeit.serve"),
        ("mcbeit/bad.py", "from . import cli", "mcbeit may not import mcbeit.cli"),
        ("mcbeit/bad.py", "from .bench.task import Task", "mcbeit may not import mcbeit.bench.task.Task"),
        ("mcbeit/deep/bad.py", "from ..serve.client import Client", "mcbeit may not import mcbeit.serve.client.Client"),
        ("mcbeit/bad.py", "def late():\n    import mcbeit.bench", "mcbeit may not import mcbeit.bench"),
        ("mcbeit/bad.py", "import importlib\nimportlib.import_module('mcbeit.cli')", "may not import mcbeit.cli"),
        ("serve/bad.py", "from mcbeit import bench", "mcbeit.serve may not import mcbeit.bench"),
        ("serve/bad.py", "from ..cli import main", "mcbeit.serve may not import mcbeit.cli.main"),
        ("bench/bad.py", "from mcbeit.serve import batcher", "mcbeit.bench may not import mcbeit.serve.batcher"),
        ("bench/bad.py", "from mcbeit.serve import *", "mcbeit.bench may not import mcbeit.serve.*"),
        ("bench/bad.py", "from mcbeit.serve.clients import x", "mcbeit.bench may not import mcbeit.serve.clients.x"),
        ("bench/__init__.py", "from .. import serve", "mcbeit.bench may not import mcbeit.serve"),
        ("bench/bad.py", "import mcbeit.cli.main", "mcbeit.bench may not import mcbeit.cli.main"),
        ("cli/bad.py", "import serve.client", "'serve.client' is not a module of ours"),
        ("mcbeit/bad.py", "from bench import task", "'bench.task' is not a module of ours"),
        ("serve/bad.py", "import cli", "'cli' is not a module of ours"),
        ("mcbeit/bad.py", "from ray import train", "ray.train only in"),
        ("mcbeit/bad.py", "import ray\ndef late():\n    ray.train.report({})", "ray.train only in"),
        ("serve/bad.py", "from ray.serve import deployment", "ray.serve only in"),
        ("bench/bad.py", "def late():\n    from pycocotools import mask", "pycocotools only in"),
        ("mcbeit/prepare/emoji_coco.py", "def late():\n    import pycocotools.mask", "pycocotools only in"),
        ("mcbeit/detection/rle.py", "def late():\n    import faster_coco_eval", "faster_coco_eval only in"),
        ("serve/bad.py", "import faiss", "faiss only in"),
        ("mcbeit/bad.py", "import pyarrow.parquet as pq", "pyarrow only in"),
        ("mcbeit/embeddings.py", "def late():\n    import pyarrow.parquet as pq", "pyarrow only in"),
        ("mcbeit/index_export.py", "import pyarrow as pa", "pyarrow only in"),
        ("cli/bad.py", "def late():\n    import lancedb", "lancedb only in"),
        ("mcbeit/index_items.py", "def late():\n    import faiss", "faiss only in"),
        ("bench/bad.py", "def late():\n    import tifffile", "tifffile only in"),
        ("mcbeit/bad.py", "from fsspec.core import url_to_fs", "fsspec only in"),
        ("serve/bad.py", "import torch.nn as nn", "torch is loaded with it"),
        ("serve/bad.py", "try:\n    import torch\nexcept ImportError:\n    pass", "torch is loaded with it"),
        ("serve/bad.py", "class Session:\n    from torch import Tensor", "torch is loaded with it"),
        ("serve/bad.py", "from mcbeit.vit import Vit", "torch is loaded with it"),
        ("cli/bad.py", "from mcbeit.bench import detection", "torch is loaded with it"),
        ("cli/bad.py", "from mcbeit.serve import deployment", "ray is loaded with it"),
        ("mcbeit/__init__.py", "from mcbeit.vit import Vit", "timm is loaded with it"),
    ],
)  # fmt: skip
def test_violations__are_found(tmp_path: Path, path: str, text: str, rule: str) -> None:
    found = violations(plant(tmp_path, {**LAWFUL, path: text}))
    assert any(line.startswith(f"{path}: ") and rule in line for line in found), found


HELP_OF_ALL = """
import contextlib, io, json, sys
import click, mcbeit
from mcbeit.cli.main import cli

def walk(path, command):
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from walk([*path, name], command.get_command(context, name))

loaded = {}
for path in walk([], cli):
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main([*path, "--help"], prog_name="mcbeit", standalone_mode=False)
    loaded[" ".join(["mcbeit", *path])] = sorted(set(sys.argv[1:]) & set(sys.modules))
print(json.dumps(loaded))
"""


def test_help__loads_nothing_heavy() -> None:
    """`import mcbeit`, `mcbeit --help` and the help of every command and subcommand."""
    heavy = ["torch", "torchvision", "timm", "ray", "onnxruntime", "faiss", "matplotlib", "scipy"]
    heavy += ["pyarrow", "tifffile", "fsspec", "lancedb", "pycocotools", "faster_coco_eval"]
    command = [sys.executable, "-c", HELP_OF_ALL, *heavy]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    assert {"mcbeit", "mcbeit train", "mcbeit doctor"} <= loaded.keys()
    assert {help_of: modules for help_of, modules in loaded.items() if modules} == {}
