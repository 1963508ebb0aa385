"""`mcbeit whiten`: a whitening, learned from the embeddings of a whole source as they come."""

from contextlib import closing
from pathlib import Path

from mcbeit.chunk_embedding import LocalCrew
from mcbeit.chunks import make_plan
from mcbeit.embed_task import StreamConfig, Task
from mcbeit.errors import ConfigError, DataError, EmbeddingError
from mcbeit.progress import Display
from mcbeit.sources import source_notes
from mcbeit.whitening import Moments, Whitening, check_enough


def whiten(model: str, config: StreamConfig, out: Path, *, dim: int | None = None) -> tuple[Whitening, int]:
    """Learn the whitening of a model's embeddings to `dim` axes, and write it; also returns how many images it saw.

    Embeddings are taken before they are scaled to unit length. Raises EncoderError if the images are too few,
    DataError if too many of them cannot be read, EmbeddingError if `out` is there already.
    """
    if config.whitening is not None:
        raise ConfigError(f"whitening={config.whitening}: a whitening is learned from what is not whitened yet")
    if out.exists() or not out.parent.is_dir():
        what = "exists already; choose another -o, or remove it" if out.exists() else "has no folder to lie in; make it"
        raise EmbeddingError(f"'{out}' {what}")
    task = Task(model, StreamConfig.model_validate({**config.model_dump(exclude_unset=True), "normalize": False}))
    source = task.open_source()
    crew = LocalCrew(task, source)
    check_enough(len(source), dim=dim, width=crew.spec.dim)
    plan = make_plan(len(source), row_bytes=4 * crew.spec.dim, batch_size=config.batch_size)
    moments, num_unreadable = Moments(crew.spec.dim), 0
    made = crew.chunks(plan, range(plan.num_chunks), stop=lambda: False)
    with Display("whiten", len(source)) as display, closing(made):
        for note in (*crew.notes, *source_notes(source)):
            display.note(note)
        for chunk in made:
            moments.add(chunk.rows)
            num_unreadable += len(chunk.unreadable)
            if num_unreadable > config.data.max_corrupt_fraction * len(source):
                image, reason = chunk.unreadable[-1]
                raise DataError(
                    f"{num_unreadable} of {len(source)} images cannot be read, such as '{source.name(image)}': "
                    f"{reason}; mcbeit data check lists them, data.max_corrupt_fraction allows more"
                )
            display.update(plan.images(chunk.number).stop)
    found = moments.whitening(fingerprint=crew.spec.fingerprint, dim=dim)
    found.save(out)
    return found, moments.count
