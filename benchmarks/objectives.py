"""What pretraining is worth, and whether multi-choice targets are worth more than hard ones: seeds side by side.

    mcbeit data prepare fashion-mnist data/fashion-mnist
    python benchmarks/objectives.py fashion-mnist -o runs/objectives          # about an hour and a half on 2 cores

For emoji also `mcbeit data prepare emoji data/emoji` and `photos data/photos`; its presets are shortened to one epoch,
and it took three hours on 2 cores that had other work beside it.
For each seed a tokenizer, then the same backbone three times: as it is before training, pretrained with hard targets
(BEiT), and with multi-choice targets (mc-BEiT), with one budget, init, order of images and masks. Each is measured by
`mcbeit bench`: k-NN and a linear probe on frozen features, and finetuning on 1 % and 10 % of the labels. What is done
is kept; the same command goes on where it was stopped.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mcbeit.bench.result import Result, read_results
from mcbeit.cli.tables import print_table

RANDOM, HARD, SOFT = "untrained", "hard targets (BEiT)", "multi-choice targets (mc-BEiT)"
BACKBONES = {  # what of the preset is changed
    RANDOM: ["optim.steps=1", "optim.lr=1e-12", "optim.min_lr=0"],  # a step that is too small to change a number
    HARD: ["objective.targets=hard"],
    SOFT: [],
}


class Setting(NamedTuple):
    """One set of images, and the presets for it."""

    preset: str
    tokenizer: str
    finetune: str
    classes: str  # the labelled images
    tokenizer_changes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()  # of the preset


SETTINGS = {
    "fashion-mnist": Setting("demo", "demo-tokenizer", "finetune-demo", "data/fashion-mnist"),
    "emoji": Setting(
        "emoji",
        "emoji-tokenizer",
        "finetune-demo",
        "data/emoji",
        tokenizer_changes=("optim.epochs=1",),
        changes=("optim.epochs=1", "optim.warmup_epochs=0.1", "eval.gallery=null", "eval.queries=null"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=SETTINGS)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="images per split in k-NN and linear probe; default: all")
    options = parser.parse_args()
    setting, out = SETTINGS[options.images], options.out / options.images
    results: dict[str, list[list[Result]]] = {RANDOM: [], HARD: [], SOFT: []}
    for seed in range(options.seeds):
        for name, model in models(setting, out, seed):
            results[name].append(list(measure(options.images, setting, out, model, seed, options.limit)))
            report(results)


def models(setting: Setting, out: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """The three backbones of a seed, trained if they are not there."""
    tokenizer = out / f"tokenizer-{seed}"
    mcbeit("train", setting.tokenizer, f"run={tokenizer}", f"seed={seed}", *setting.tokenizer_changes, "--resume")
    for name, changes in BACKBONES.items():
        run = out / f"{name.split()[0]}-{seed}"
        words = [f"run={run}", f"seed={seed}", f"tokenizer.path={tokenizer}", *setting.changes, *changes, "--resume"]
        mcbeit("train", setting.preset, *words)
        yield name, run


def measure(images: str, setting: Setting, out: Path, model: Path, seed: int, limit: int | None) -> Iterator[Result]:
    """Results of one backbone: k-NN, linear, and two of finetuning."""
    folder = out / "bench" / model.name
    common = ["-m", str(model), "--data", f"{images}={setting.classes}", "-o", str(folder), "--resume", f"seed={seed}"]
    limited = [] if limit is None else [f"limit={limit}"]
    mcbeit("bench", "run", "-t", "knn,logreg", *common, "logreg.num_strengths=12", "logreg.scaling=standardise",
           "logreg.precision=fp32", *limited)  # fmt: skip
    for fraction in (0.01, 0.1):
        recipe = [f"finetune.recipe={setting.finetune}", f"finetune.label_fraction={fraction}"]
        recipe += ["finetune.eval={every_epochs: 1000}"]  # the last epoch counts; judging each takes long
        if fraction < 0.1:
            recipe += ["finetune.optim={epochs: 20, batch_size: 32}"]
        mcbeit("bench", "run", "-t", "finetune", *common, *recipe)
    yield from read_results(folder)


def report(results: dict[str, list[list[Result]]]) -> None:
    """Print the means over seeds, with the deviation between seeds, and the differences within seeds."""
    columns = ["knn", "logreg", "finetune, 1 %", "finetune, 10 %"]
    found = {name: [by_column(one) for one in seeds] for name, seeds in results.items()}
    rows = [[name, *(spread([one[c] for one in seeds]) for c in columns)] for name, seeds in found.items() if seeds]
    pairs = list(zip(found[SOFT], found[HARD], strict=False))
    if pairs:
        rows.append(["multi-choice minus hard, in pairs", *(spread([a[c] - b[c] for a, b in pairs]) for c in columns)])
    print_table([f"top-1, %, {len(pairs)} seeds: mean ± deviation", *columns], rows)


def by_column(results: list[Result]) -> dict[str, float]:
    found = {}
    for result in results:
        share = result.task.protocol.get("label_fraction")
        name = result.task.name if share is None else f"{result.task.name}, {100 * share:g} %"
        found[name] = 100 * result.metrics[result.primary].value
    return found


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def mcbeit(*words: str) -> None:
    print("$ mcbeit", *words, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "mcbeit.cli.main", *words], check=True)


if __name__ == "__main__":
    main()
