"""What pretraining is worth for segmentation and detection on scenes of emoji (synthetic composites), over seeds.

    mcbeit data prepare emoji-ade-agnostic data/emoji-ade-agnostic
    mcbeit data prepare emoji-coco-agnostic data/emoji-coco-agnostic
    mcbeit train emoji
    python benchmarks/dense.py -o runs/dense          # 25 minutes per seed and model on one quiet core

The backbone of runs/emoji and the same one before training, each under the small recipes of the presets
segmentation-demo and detection-demo, whose seeds differ in heads, crops and order. Frozen features are measured too, by
a linear layer and by neighbours. What is done is kept; the same command goes on where it was stopped.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from objectives import mcbeit, spread  # the script beside this one

from mcbeit.bench.result import Result, read_results
from mcbeit.cli.tables import print_table

ADE, COCO = "emoji-ade-agnostic=data/emoji-ade-agnostic", "emoji-coco-agnostic=data/emoji-coco-agnostic"
FROZEN = ["short_side=160", "stride=48"]
COLUMNS = {  # task, metric -> what the column is called
    ("segmentation-knn", "miou"): "mIoU, neighbours",
    ("segmentation-linear", "miou"): "mIoU, linear",
    ("segmentation", "miou"): "mIoU, UperNet",
    ("detection", "box_ap"): "box AP",
    ("detection", "mask_ap"): "mask AP",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    untrained = options.out / "untrained"
    if not (untrained / "summary.json").exists():  # a step that is too small to change a number
        still = ["optim.steps=1", "optim.lr=1e-12", "optim.min_lr=0", "eval.gallery=null", "eval.queries=null"]
        mcbeit("train", "emoji", f"run={untrained}", *still, "--resume")
    models = {"untrained": str(untrained), "pretrained": "runs/emoji"}
    for seed in range(options.seeds):
        for name, model in models.items():
            measure(options.out / name, model, seed)
        print_table(*table({name: options.out / name for name in models}))


def measure(folder: Path, model: str, seed: int) -> None:
    """All tasks of one seed."""
    common = ["-m", model, "-o", str(folder), "--resume", f"seed={seed}"]
    frozen = [f"{task}.{one}" for task in ("segmentation-knn", "segmentation-linear") for one in FROZEN]
    mcbeit("bench", "run", "-t", "segmentation-knn,segmentation-linear", "--data", ADE, *common, *frozen,
           "segmentation-linear.steps=1000", "segmentation-linear.warmup_steps=100",
           "segmentation-linear.max_class_share=0.95", "segmentation-knn.patches=20000")  # fmt: skip
    mcbeit("bench", "run", "-t", "segmentation", "--data", ADE, *common, "segmentation.recipe=segmentation-demo")
    mcbeit("bench", "run", "-t", "detection", "--data", COCO, *common, "detection.recipe=detection-demo")


def table(folders: dict[str, Path]) -> tuple[list[str], list[list[str]]]:
    """Means over seeds with the deviation between seeds, in percent."""
    rows = []
    for name, folder in folders.items():
        found = [list(values(list(read_results(folder)), *column)) for column in COLUMNS]
        rows.append([name, *(spread(one) if one else "" for one in found)])
    return ["%, mean ± deviation over seeds", *COLUMNS.values()], rows


def values(results: list[Result], task: str, metric: str) -> Iterator[float]:
    return (100 * one.metrics[metric].value for one in results if one.task.name == task)


if __name__ == "__main__":
    main()
