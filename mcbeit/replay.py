"""Repeating one step of a run, to see which images and which parameters made its loss or gradient not finite."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from mcbeit.config import load, read_values
from mcbeit.data import Batch, check_readable
from mcbeit.errors import RunError
from mcbeit.initial_weights import start_from
from mcbeit.optim import steps_per_epoch
from mcbeit.pretrain import batches, predict, split, train_step
from mcbeit.pretrain_setup import PretrainConfig, Pretraining, build
from mcbeit.runfolder import RunFolder
from mcbeit.sources import ImageSource


class ImageLoss(NamedTuple):
    """One image of the batch, alone."""

    name: str
    loss: float


class Replay(NamedTuple):
    """What a step does when it is done again."""

    step: int
    from_step: int  # of the checkpoint that it was reached from
    loss: float
    gradient_norm: float
    images: list[ImageLoss]
    bad_parameters: list[str]  # whose gradient is not finite


def replay(run: Path, step: int | None = None) -> Replay:
    """Do a step of a pretraining run again in this process, the last skipped one by default; changes nothing.

    The model is that of the newest checkpoint before the step, trained on up to it. Raises RunError if there is no such
    run, or no such step.
    """
    folder = RunFolder(run, keep=1)
    if not (run / "config.yaml").is_file():
        raise RunError(f"'{run}' is not a run; name the folder of one")
    if step is None:
        skipped = folder.skipped_steps()
        if not skipped:
            raise RunError(f"no step of '{run}' was skipped; name another with --step")
        step = skipped[-1]["step"]
    if (job := read_values(run / "config.yaml").get("job", "pretrain")) != "pretrain":
        raise RunError(f"'{run}' is a {job} run; only steps of pretraining runs can be repeated")
    config = load(PretrainConfig, run / "config.yaml", [f"run={run}"])
    source = config.data.open()
    per_epoch = steps_per_epoch(len(source), config.optim, config.data.masks_per_image)
    if not 0 <= step < (total := config.optim.total_steps(per_epoch)):
        raise RunError(f"--step {step} is not a step of '{run}'; it has the steps 0 to {total - 1}")
    parts = build(config, source)
    from_step = _go_to(parts, folder, step)
    for at, batch in zip(range(from_step, step + 1), batches(parts, source, range(from_step, step + 1)), strict=True):
        here = check_readable(batch, source).to(parts.device)
        if at < step:
            train_step(parts, here, config.optim.lr_at(at, per_epoch), measured=False)
    return _look(parts, source, here, step, from_step)


def _go_to(parts: Pretraining, folder: RunFolder, step: int) -> int:
    """Restore the newest checkpoint at or before a step; returns its own step, 0 without one."""
    earlier = [found for found in folder.checkpoints.steps() if found <= step]
    if earlier:
        parts.state.restore(folder.checkpoints.load(earlier[-1]))
    elif (init := parts.config.init) is not None:
        start_from(init, parts.model, parts.config.model, parts.config.preprocess)
    return parts.state.step


def _look(parts: Pretraining, source: ImageSource, batch: Batch, step: int, from_step: int) -> Replay:
    parts.model.train()
    parts.model.zero_grad()
    prediction, _ = predict(parts, batch)
    prediction.loss.backward()
    gradients = {n: p.grad for n, p in parts.model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(gradients.values())
    with torch.no_grad():
        alone = [float(predict(parts, part)[0].loss) for part in split(batch, len(batch.images))]
    return Replay(
        step,
        from_step,
        float(prediction.loss.detach()),
        float(norm),
        [ImageLoss(source.name(int(image)), loss) for image, loss in zip(batch.images, alone, strict=True)],
        [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())],
    )


def report(found: Replay) -> dict[str, Any]:
    """The same as plain values, for JSON."""
    return {**found._asdict(), "images": [image._asdict() for image in found.images]}
