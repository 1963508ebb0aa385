"""`mcbeit viz`: pictures of what a model's features see, as PNG files and a page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from mcbeit.encoder import PixelEncoder
    from mcbeit.viz.pca import Foreground
    from mcbeit.viz.pictures import Upsample

F = TypeVar("F", bound=Callable[..., None])


def drawing(function: F) -> F:
    """The arguments and options of every drawing."""
    for add in (
        click.option(
            "--limit", type=click.IntRange(min=1), default=24, help="Draw so many images at most, 24 by default."
        ),
        click.option(
            "-o",
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            required=True,
            help="The folder to write to.",
        ),
        click.option("--model", required=True, help="The model: an exported folder, a run, weights or timm:NAME."),
        click.argument("words", metavar="IMAGE... [KEY=VALUE]...", nargs=-1, required=True),
    ):
        function = add(function)
    return function


upsampling = click.option(
    "--upsample",
    type=click.Choice(["bilinear", "nearest"]),
    default="bilinear",
    help="How a map of patches is enlarged; nearest shows the patches as they are.",
)


@click.group
def command() -> None:
    """Draw what features see: PCA colours, similar patches, neighbours."""


@command.command()
@drawing
@upsampling
@click.option(
    "--foreground",
    type=click.Choice(["none", "auto", "positive", "negative"]),
    default="none",
    help="Colour one side of the first component alone; auto: the side that is less at the borders.",
)
def pca(
    words: tuple[str, ...], model: str, out: Path, limit: int, upsample: "Upsample", foreground: "Foreground"
) -> None:
    """Patch features as colours, by one PCA over all images.

    IMAGE is a file or a folder; KEY=VALUE sets keys of the encoder, such as image_size or layer. Writes OUT/pca.html,
    OUT/pca.png and a PNG per image.

    \b
    mcbeit viz pca photos/*.jpg --model runs/demo -o viz
    mcbeit viz pca photos --model timm:vit_small_patch16_224 -o viz --foreground auto image_size=448
    """
    from mcbeit.viz import draw_pca

    encoder, images = open_model(words, model, limit)
    click.echo(draw_pca(encoder, images, out, foreground=foreground, upsample=upsample))


@command.command()
@drawing
@upsampling
@click.option(
    "--at",
    "places",
    metavar="X,Y",
    multiple=True,
    default=["0.5,0.5"],
    help="The patch, in fractions of the first image; may be repeated.",
)
def similarity(
    words: tuple[str, ...], model: str, out: Path, limit: int, upsample: "Upsample", places: tuple[str, ...]
) -> None:
    """How alike one patch of the first image is to every patch, of this image and of the others.

    IMAGE is a file or a folder; KEY=VALUE sets keys of the encoder. --at counts from the left and from the top of what
    the model sees. Writes OUT/similarity.html, OUT/similarity.png and a PNG per image.

    \b
    mcbeit viz similarity cat.jpg dog.jpg --model runs/demo -o viz --at 0.4,0.3
    mcbeit viz similarity photos --model runs/demo -o viz --at 0.5,0.5 --at 0.1,0.9 --upsample nearest
    """
    from mcbeit.viz import draw_similarity
    from mcbeit.viz.similarity import parse_place

    where = [parse_place(place) for place in places]
    encoder, images = open_model(words, model, limit)
    click.echo(draw_similarity(encoder, images, out, places=where, upsample=upsample))


@command.command()
@drawing
@click.option(
    "--index", "index_path", type=click.Path(path_type=Path), help="Look in this index; else among the images."
)
@click.option("-k", "--hits", type=click.IntRange(min=1), default=6, help="Neighbours per image, 6 by default.")
def neighbours(words: tuple[str, ...], model: str, out: Path, limit: int, index_path: Path | None, hits: int) -> None:
    """The nearest other images of each image.

    IMAGE is a file or a folder; KEY=VALUE sets keys of the encoder. Writes OUT/neighbours.html, OUT/neighbours.png and
    a PNG per image. An index of another model is refused.

    \b
    mcbeit viz neighbours photos --model runs/demo -o viz
    mcbeit viz neighbours cat.jpg --model runs/demo -o viz --index photos.index -k 8
    """
    from mcbeit.index import Index
    from mcbeit.viz import draw_neighbours
    from mcbeit.viz.neighbours import Among, InIndex

    encoder, images = open_model(words, model, limit)
    if index_path is None:
        click.echo(draw_neighbours(encoder, images, out, Among(hits)))
        return
    with Index.open(index_path) as index:
        click.echo(draw_neighbours(encoder, images, out, InIndex(index, hits)))


def open_model(words: Sequence[str], model: str, limit: int) -> "tuple[PixelEncoder, list[str]]":
    """The encoder and the images that the words of a command name."""
    from mcbeit.config import split_assignments
    from mcbeit.encoder import encoder_config, load_encoder
    from mcbeit.viz import find_images, spread

    places, assignments = split_assignments(words)
    encoder = load_encoder(model, encoder_config(assignments))
    found = find_images(places, channels=encoder.spec.preprocess.channels)
    if len(found) > limit:
        click.echo(f"drawing {limit} of {len(found)} images, evenly spread; --limit draws more", err=True)
    return encoder, spread(found, limit)
