"""The page about a run: every figure with its numbers, in one file that needs no other."""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

import mcbeit
from mcbeit.bench import figures
from mcbeit.bench.run_report import examples
from mcbeit.bench.run_report.baselines import Features, class_names
from mcbeit.bench.run_report.trained import TrainedRun, read_tokenizer
from mcbeit.config import dump
from mcbeit.dvae import DiscreteVAE
from mcbeit.errors import RunError, WeightsError
from mcbeit.masking import num_masked
from mcbeit.optim import steps_per_epoch
from mcbeit.probe import OnlineProbe, pick
from mcbeit.runfolder import read_records
from mcbeit.sources import ImageSource, open_source
from mcbeit.tokenizer import Tokenizer
from mcbeit.vit import VisionTransformer

NUM_TOKENIZED = 256  # images on which the use of the codes is counted
NUM_RECONSTRUCTED = 8
NUM_EXPLAINED = 4  # images whose targets and similar patches are shown
NUM_NEIGHBOURS, NUM_QUERIES = 6, 8
CURVES = {
    "loss": "loss",
    "loss_above_entropy": "loss minus target entropy",
    "masked_accuracy": "accuracy on masked patches",
    "code_perplexity": "perplexity of a batch's codes",
    "gradient_norm": "gradient norm",
    "lr": "learning rate",
    "images_per_second": "images per second",
    "knn_top1": "k-NN top-1 on held-out images",
}
Values = dict[str, Any]


def render(
    run: TrainedRun,
    random: VisionTransformer,
    *,
    table: Sequence[Sequence[str]],
    notes: Sequence[str],
    probe: OnlineProbe | None,
    features: dict[str, Features],
) -> str:
    """The page as HTML. `table` and `notes` are what the command prints."""
    config, records = run.config, list(read_records(run.path))
    source, queries = config.data.open(), config.eval.queries
    shown = source if queries is None else open_source(queries, config.eval.kind, channels=config.data.channels)
    template = files("mcbeit.bench.run_report").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"uri": figures.picture_uri}
    return environment.from_string(template).render(
        style=figures.page_style(),
        name=run.path.resolve().name,
        version=mcbeit.__version__,
        facts=facts(run, records, source),
        table=table,
        notes=notes,
        curves=[figures.curve_chart(curve) for curve in curves(records)],
        held_out=config.eval.queries is not None,
        config=dump(config),
        omega=config.objective.refine_weight,
        grid=config.grid,
        **_pictures(run, random, shown),
        neighbours=_neighbours(run, probe, features),
    )


def _pictures(run: TrainedRun, random: VisionTransformer, source: ImageSource) -> Values:
    """What tokenizer and backbones make of some images of a source, drawn by the run's seed."""
    config = run.config
    found: Values = {"tokenizer": None, "targets": [], "missing": None}
    indices, preprocesses = pick(source, NUM_TOKENIZED, config.seed), [config.preprocess]
    try:
        tokenizer: Tokenizer | None = read_tokenizer(config, run.path).to(run.device)
    except (RunError, WeightsError) as error:
        tokenizer, found["missing"] = None, str(error)
    if tokenizer is not None:
        interpolation = config.tokenizer.interpolation or tokenizer.interpolation
        size = {"image_size": tokenizer.view_size(config.grid), "interpolation": interpolation}
        preprocesses.append(config.preprocess.model_copy(update=size))
    views = examples.read_views(source, indices, preprocesses)
    chosen = np.linspace(0, len(views[0]) - 1, num=min(NUM_EXPLAINED, len(views[0]))).round().astype(int)
    if tokenizer is not None:
        found |= _tokenizer_pictures(run, tokenizer, views[0], views[1], chosen)
    backbones = {"pretrained": run.backbone, "random": random}
    similar = examples.similarity_examples(run, backbones, views[0][chosen])
    return {**found, "similar": [_similar(example) for example in similar], "heat_scale": figures.scale_uri()}


def _tokenizer_pictures(
    run: TrainedRun, tokenizer: Tokenizer, images: examples.Pictures, views: examples.Pictures, chosen: np.ndarray
) -> Values:
    use = examples.code_use(tokenizer, views)
    some = np.linspace(0, len(views) - 1, num=min(NUM_RECONSTRUCTED, len(views))).round().astype(int)
    decoded = examples.reconstructions(tokenizer, views[some]) if isinstance(tokenizer, DiscreteVAE) else []
    return {
        "tokenizer": {
            "chart": figures.code_use_chart(use.counts.numpy()),
            "num_images": len(views),
            "used": int((use.counts > 0).sum()),
            "codes": tokenizer.vocab_size,
            "perplexity": use.perplexity,
            "pairs": [(examples.picture(views[i]), after) for i, after in zip(some, decoded, strict=False)],
        },
        "targets": examples.target_examples(run, tokenizer, images[chosen], views[chosen]),
        "codes": use.surroundings,
    }


def _similar(example: examples.SimilarityExample) -> Values:
    """The maps of an example on one colour scale each, from their lowest to their highest value."""
    maps = [
        (name, figures.heat_uri(values, low=float(values.min()), high=1.0), float(values.min()))
        for name, values in example.maps.items()
    ]
    return {"image": example.image, "patch": example.patch, "maps": maps}


def _neighbours(
    run: TrainedRun, probe: OnlineProbe | None, features: dict[str, Features]
) -> list[examples.NeighbourExample]:
    if probe is None:
        return []
    return examples.neighbour_examples(
        probe, features, class_names(run.config), seed=run.config.seed, num_queries=NUM_QUERIES, count=NUM_NEIGHBOURS
    )


def curves(records: Sequence[Values]) -> list[figures.Curve]:
    """The measurements of a run that are worth a look, those that were made at all."""
    found = []
    for key, title in CURVES.items():
        rows = [record for record in records if record.get(key) is not None]  # null: it was not finite
        if not rows or (key == "knn_top1" and len(rows) < 2):
            continue
        steps, values = [row["step"] for row in rows], [float(row[key]) for row in rows]
        curve = figures.Curve(title, steps, values)
        if key == "loss" and all(row.get("target_entropy") is not None for row in rows):
            entropies = [float(row["target_entropy"]) for row in rows]
            curve = curve._replace(name="loss", other=entropies, other_name="target entropy")
        found.append(curve)
    return found


def facts(run: TrainedRun, records: Sequence[Values], source: ImageSource) -> list[tuple[str, str]]:
    """What was trained on what, how, where: pairs of a word and a line."""
    config, grid = run.config, run.config.grid
    dim, depth, heads = config.model.shape
    total = config.optim.total_steps(steps_per_epoch(len(source), config.optim, config.data.masks_per_image))
    million = sum(p.numel() for p in run.backbone.parameters()) / 1e6
    patch, size, options = config.model.patch_size, config.preprocess.image_size, config.objective
    return [
        ("images", f"{len(source):,} in {_places(config.data.source)}; {_num_corrupt(run)} unreadable"),
        ("backbone", f"{depth} blocks, width {dim}, {heads} heads, {million:.3g} M parameters"),
        ("patches", f"{grid[0]} x {grid[1]} of {patch} x {patch} pixels, images of {size} x {size} pixels"),
        ("tokenizer", f"{config.tokenizer.kind}, {run.model.lm_head.out_features} codes"),
        ("targets", f"{options.targets}, temperature {run.temperature:.4g}, refine weight {options.refine_weight:g}"),
        ("mask", f"{config.mask.kind}, {num_masked(grid, config.mask.ratio)} of {grid[0] * grid[1]} patches"),
        ("training", f"{run.step} of {total} steps, batch {config.optim.batch_size}, lr {config.optim.lr:g}"),
        ("state", "complete" if run.step >= total else "unfinished: this is its last checkpoint so far"),
        ("time", _duration(training_seconds(records, config.optim.batch_size))),
        ("seed", str(config.seed)),
        *([] if config.init is None else [("initial weights", config.init)]),
        *_environment(run),
    ]


def training_seconds(records: Sequence[Values], batch_size: int) -> float:
    """The time spent in steps, from the logged speeds; evaluation and checkpoints are not in it."""
    seconds, last = 0.0, -1
    for record in records:
        if "images_per_second" in record:
            seconds += (record["step"] - last) * batch_size / record["images_per_second"]
            last = record["step"]
    return seconds


def _duration(seconds: float) -> str:
    if seconds < 90:
        text = f"{seconds:.0f} s"
    else:
        text = f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{text} in training steps, without evaluation"


def _places(location: str | list[str] | None) -> str:
    return location if isinstance(location, str) else ", ".join(location or [])


def _num_corrupt(run: TrainedRun) -> int:
    file = run.path / "corrupt.txt"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _environment(run: TrainedRun) -> list[tuple[str, str]]:
    file = run.path / "env.json"
    if not file.exists():
        return []
    values = json.loads(file.read_text(encoding="utf-8"))
    versions = {"mcbeit": values["mcbeit"], "Python": values["python"], **values["versions"]}
    found = [
        ("machine", f"{values['machine']['platform']}, {values['machine']['cpus']} CPUs"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    if git := values["git"]:
        found.append(("commit", git["commit"][:12] + (" with local changes" if git["dirty"] else "")))
    return found
