"""Square crops of freely licensed photographs, split by photograph: unlabelled colour images for pretraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps, ImageStat

from mcbeit.prepare.credits import Credit, credit_of
from mcbeit.prepare.folder import Built, DataSet, Source, split_of
from mcbeit.prepare.packages import debian_package
from mcbeit.prepare.progress import track

SEED = 0
CROP_SIZE = 160
SHORT_SIDE = 1080  # of the photograph before cropping; sharper pixels are mostly sensor noise
NUM_CROPS = {"train": 250, "val": 80}  # of each photograph
JPEG_QUALITY = 90
LARGEST_CROP = 0.9  # of the photograph's short side
MIN_DETAIL = 2.5  # in grey values, 0 to 255: below it a crop is empty sky or blur
DETAIL_RADIUS = 4  # pixels
MAX_TRIES = 8
VALIDATION_SHARE = 0.2
NOT_PHOTOGRAPHS = {"umang-by-abhishek-mudgal"}  # a computer-made gradient among the photographs


@dataclass(frozen=True)
class Collection:
    """A Debian package with photographs: where they lie in it, and in which folder of its source."""

    package: str
    pattern: str
    source_folder: str


COLLECTIONS = (
    Collection("lomiri-wallpapers-16.04", "usr/share/backgrounds/*_by_*.jpg", "16.04"),
    Collection("mate-backgrounds", "usr/share/backgrounds/mate/nature/*.jpg", "nature"),
)


@dataclass(frozen=True)
class Photograph:
    """One photograph; `name` serves as class folder."""

    name: str
    path: Path
    credit: Credit

    @property
    def split(self) -> str:
        """The split that all crops of this photograph belong to."""
        return split_of(self.name, validation_share=VALIDATION_SHARE)


def build(tree: Path, workspace: Path) -> Built:
    """Write the crops of every photograph under `tree`."""
    photographs, sources = fetch_photographs(workspace)
    for photograph in track(photographs, label="cutting photographs", total=len(photographs)):
        image = open_photograph(photograph.path, short_side=SHORT_SIDE)
        folder = tree / photograph.split / photograph.name
        write_crops(image, folder, num_crops=NUM_CROPS[photograph.split], generator=named_generator(photograph.name))
    return Built(sources, "# Crops of photographs\n\n" + credit_table(photographs))


def fetch_photographs(workspace: Path) -> tuple[list[Photograph], list[Source]]:
    """All photographs that a package gives credit for, sorted by name, and the packages they come from."""
    photographs: list[Photograph] = []
    sources = []
    for collection in COLLECTIONS:
        package = debian_package(collection.package, workspace)
        text = package.file(f"usr/share/doc/{collection.package}/copyright").read_text(encoding="utf-8")
        found = []
        for path in package.files(collection.pattern):  # of an installed package: other packages' files as well
            name, credit = photograph_name(path), credit_of(text, f"{collection.source_folder}/{path.name}")
            if credit is not None and name not in NOT_PHOTOGRAPHS:
                found.append(Photograph(name, path, credit))
        licences = ", ".join(sorted({photograph.credit.licence for photograph in found}))
        sources.append(package.source(licences, [photograph.path for photograph in found]))
        photographs += found
    return sorted(photographs, key=lambda photograph: photograph.name), sources


def photograph_name(path: Path) -> str:
    """`Bridge_by_Sander_Klootwijk.jpg` -> `bridge-by-sander-klootwijk`."""
    return path.stem.lower().replace("_", "-")


def open_photograph(path: Path, *, short_side: int) -> Image.Image:
    """The photograph upright, in RGB, scaled down to the given short side in pixels."""
    with Image.open(path) as file:
        file.draft("RGB", (short_side, short_side))  # lets the JPEG decoder skip most of the work
        image = ImageOps.exif_transpose(file).convert("RGB")
    scale = min(1.0, short_side / min(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


Backgrounds = Mapping[str, Mapping[str, Image.Image]]  # split -> name -> photograph


def open_backgrounds(photographs: Sequence[Photograph], *, short_side: int) -> Backgrounds:
    """The photographs of each split, small enough to be held in memory together."""
    backgrounds: dict[str, dict[str, Image.Image]] = {"train": {}, "val": {}}
    for photograph in photographs:
        image = open_photograph(photograph.path, short_side=short_side)
        backgrounds[photograph.split][photograph.name] = image
    return backgrounds


def named_generator(*names: str) -> np.random.Generator:
    """Randomness that depends on the seed and the names alone, not on what was drawn before."""
    return np.random.default_rng([SEED, *"\0".join(names).encode()])


def write_crops(image: Image.Image, folder: Path, *, num_crops: int, generator: np.random.Generator) -> None:
    """Write `num_crops` crops as JPEG files."""
    folder.mkdir(parents=True)
    for index in range(num_crops):
        crop = detailed_crop(image, generator)
        crop.save(folder / f"{index:04d}.jpg", quality=JPEG_QUALITY)


def detailed_crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The first random crop with something on it, or the most detailed of a few."""
    crops = []
    for _ in range(MAX_TRIES):
        crops.append(random_crop(image, generator, size=CROP_SIZE, largest=LARGEST_CROP))
        if detail(crops[-1]) >= MIN_DETAIL:
            return crops[-1]
    return max(crops, key=detail)


def random_crop(image: Image.Image, generator: np.random.Generator, *, size: int, largest: float) -> Image.Image:
    """A square scaled to `size`; its side is log-uniform from `size` to `largest` of the image's short side."""
    limit = min(image.size)
    most = max(limit * largest, min(size, limit))
    side = round(float(np.exp(generator.uniform(np.log(min(size, limit)), np.log(most)))))
    left = int(generator.integers(image.width - side + 1))
    top = int(generator.integers(image.height - side + 1))
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=2.0)


def detail(image: Image.Image) -> float:
    """How far the grey values are from their surroundings on average, 0 to 255: edges count, slow gradients do not."""
    grey = image.convert("L")
    return ImageStat.Stat(ImageChops.difference(grey, grey.filter(ImageFilter.GaussianBlur(DETAIL_RADIUS)))).mean[0]


def credit_table(photographs: Sequence[Photograph]) -> str:
    """The credit of each photograph, and what a receiver of the images has to know."""
    lines = ["| photograph | split | file | credit | licence |", "|---|---|---|---|---|"]
    for photograph in photographs:
        credit = photograph.credit
        lines.append(
            f"| {photograph.name} | {photograph.split} | {photograph.path.name} | {credit.holder} "
            f"| {credit.licence_text} |"
        )
    notes = (
        f"Sources: the Debian packages {' and '.join(collection.package for collection in COLLECTIONS)}.\n"
        "Changes: the photographs were scaled down, cut into squares and saved again as JPEG.\n"
        "Whoever passes such images on has to keep to the licence of each photograph.\n"
    )
    return "\n".join([*lines, "", notes])


PHOTOS = DataSet(name="photos", builder_version=1, seed=SEED, build=build)
