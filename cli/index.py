"""`mcbeit index`: the images that are most like another one."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import JustifyMethod, OverflowMethod

    from mcbeit.index import Hit
    from mcbeit.index_export import ExportFormat

COLUMNS: "tuple[tuple[str, JustifyMethod, OverflowMethod], ...]" = (
    ("rank", "right", "ellipsis"),
    ("score", "right", "ellipsis"),
    ("label", "left", "ellipsis"),
    ("image", "left", "fold"),
)


@click.group
def command() -> None:
    """Build an index of embeddings, search it, hand it over to a vector database."""


@command.command()
@click.argument("words", metavar="EMBEDDINGS | MODEL SOURCE [KEY=VALUE]...", nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder of the new index.")
@click.option(
    "--kind",
    type=click.Choice(["auto", "flat", "hnsw", "ivfpq"]),
    default="auto",
    help="How vectors are found; auto: by their number (docs/index.md).",
)
@click.option("--force", is_flag=True, help="Replace an index that is there.")
def build(words: tuple[str, ...], out: Path, kind: str, force: bool) -> None:
    """Build an index of embeddings, or of a source of images.

    EMBEDDINGS is a file that `mcbeit embed` wrote. Or MODEL embeds every image of SOURCE: MODEL is whatever
    `mcbeit embed` takes, SOURCE whatever data.source of a run may be. KEY=VALUE sets keys of the sections data and
    index; other keys are of the encoder, such as pooling. What was built is printed.

    \b
    mcbeit index build photos.npy -o photos.index
    mcbeit index build runs/demo ~/photos -o photos.index
    mcbeit index build timm:tf_efficientnet_lite0 data/emoji/train -o emoji.index data.kind=imagefolder
    mcbeit index build photos.npy -o photos.index --kind hnsw index.links=48
    """
    from mcbeit.config import split_assignments
    from mcbeit.errors import ConfigError, Interrupted
    from mcbeit.index import build_index
    from mcbeit.index_building import embeddings_of, index_config

    places, assignments = split_assignments(words)
    if not 1 <= len(places) <= 2:
        raise ConfigError(f"name a file of embeddings, or a model and a source of images; found {' '.join(words)}")
    config, others = index_config([f"index.kind={kind}", *assignments])
    try:
        with embeddings_of(places, others, beside=out) as (embeddings, unread):
            for line in unread:
                click.echo(f"skipped {line}", err=True)
            manifest = build_index(embeddings, out, config=config, force=force)
    except Interrupted as stopped:
        click.echo("stopped; nothing was written", err=True)
        sys.exit(128 + (stopped.signal or signal.SIGINT))
    click.echo(f"{out}: {manifest.kind}, {manifest.count} vectors of dim {manifest.encoder.dim}, cosine")


@command.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("words", metavar="QUERY... [KEY=VALUE]...", nargs=-1, required=True)
@click.option("--model", help="The model that embeds the queries, the one that the index was built with.")
@click.option("-k", "--hits", type=click.IntRange(min=1), default=10, help="Images per query, 10 by default.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for machines.")
def search(index: Path, words: tuple[str, ...], model: str | None, hits: int, as_json: bool) -> None:
    """Print the images of INDEX that are most like each QUERY.

    With --model a QUERY is an image file, and KEY=VALUE sets keys of the encoder. Without, it is a file of embeddings.
    A query of another model than that of the index is refused: such vectors cannot be compared. The score is the
    cosine, 1 for the same direction.

    \b
    mcbeit index search photos.index cat.jpg --model runs/demo
    mcbeit index search photos.index *.jpg --model runs/demo -k 3 --json
    mcbeit index search photos.index queries.npy
    """
    from mcbeit.config import split_assignments
    from mcbeit.index import Index
    from mcbeit.index_building import queries_of

    places, assignments = split_assignments(words)
    with Index.open(index) as opened:
        queries = queries_of(places, model, assignments, opened)
        found = opened.search(queries.vectors, hits, fingerprint=queries.spec.fingerprint)
    if as_json:
        answers = [
            {"query": query, "hits": [hit._asdict() for hit in near]}
            for query, near in zip(queries.ids, found, strict=True)
        ]
        click.echo(json.dumps(answers, indent=2))
    else:
        show(queries.ids, found)


@command.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The file or folder to write.")
@click.option(
    "--to",
    "kind",
    type=click.Choice(["parquet", "qdrant", "pgvector", "lancedb"]),
    help="For what; by default the suffix of OUT tells: .parquet, .jsonl, .sql, .lancedb.",
)
@click.option("--table", default="embeddings", help="The name of the table in pgvector and LanceDB.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def export(index: Path, out: Path, kind: "ExportFormat | None", table: str, force: bool) -> None:
    """Write an INDEX in the format of another program.

    parquet: one table. qdrant: points, a line of JSON each. pgvector: a script for psql. lancedb: a database.
    docs/index.md shows how each is read.

    \b
    mcbeit index export photos.index -o photos.parquet
    mcbeit index export photos.index -o points.jsonl --to qdrant
    mcbeit index export photos.index -o photos.sql --to pgvector --table photos
    """
    from mcbeit.index import Index
    from mcbeit.index_export import export_index

    with Index.open(index) as opened:
        written = export_index(opened, out, kind, table=table, force=force)
        click.echo(f"{out}: {len(opened)} vectors of dim {opened.spec.dim} for {written}")


def show(queries: Sequence[str], found: "Sequence[Sequence[Hit]]") -> None:
    """A table per query in a terminal; elsewhere lines of query, rank, score, label and image between tabs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for query, hits in zip(queries, found, strict=True):
        rows = [
            [str(rank), f"{hit.score:.4f}", printable(hit.label or ""), printable(hit.path or hit.id)]
            for rank, hit in enumerate(hits, start=1)
        ]
        if not console.is_terminal:
            click.echo("\n".join("\t".join([printable(query), *row]) for row in rows))
            continue
        drawn = Table(title=Text(printable(query)), title_justify="left")
        for title, justify, overflow in COLUMNS:
            drawn.add_column(title, justify=justify, overflow=overflow)
        for row in rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)


def printable(text: str) -> str:
    """The text on one line and in UTF-8, which names of files need not be."""
    return " ".join(os.fsencode(text).decode(errors="replace").split())
