"""Where the tokenizer of a pretraining run comes from: weights that are there, or a run that trains it first."""

from pathlib import Path

import torch

from mcbeit.config import read_values, validate
from mcbeit.data import DataConfig
from mcbeit.dvae import DiscreteVAE
from mcbeit.errors import ConfigError
from mcbeit.image_files import COLOURS
from mcbeit.kmeans import KMeansTokenizer
from mcbeit.kmeans_training import KMeansRunConfig, check_kmeans, fit_kmeans
from mcbeit.masked import ObjectiveConfig
from mcbeit.preprocess import Preprocess
from mcbeit.runfolder import read_summary
from mcbeit.tokenizer import Tokenizer
from mcbeit.tokenizer_choice import (
    JOBS,
    RUN_KINDS,
    TokenizerChoice,
    load_tokenizer,
    read_stored,
    require_path,
    untold_sizes,
)
from mcbeit.tokenizer_kinds import KINDS
from mcbeit.tokenizer_training import TokenizerConfig, check_size, train_tokenizer
from mcbeit.worker import Worker

TokenizerRun = TokenizerConfig | KMeansRunConfig


def with_path(choice: TokenizerChoice, run: Path) -> TokenizerChoice:
    """The choice with the place of its weights: without one, what a preset trains is kept in RUN/tokenizer."""
    if choice.preset is None or choice.path is not None:
        return choice
    return choice.model_copy(update={"path": str(run / "tokenizer")})


def tokenizer_run(
    choice: TokenizerChoice, data: DataConfig, preprocess: Preprocess, *, seed: int, num_images: int | None = None
) -> TokenizerRun | None:
    """The run that has to train the tokenizer first; None if it is there, or if no preset is named.

    It reads the same images in the same way; a batch is never larger than the source. Where images are no colours, it
    normalises them as the backbone's are.
    """
    if choice.preset is None or (choice.path is not None and read_summary(Path(choice.path)) is not None):
        return None
    values = read_values(choice.preset)
    if choice.path is not None:
        values["run"] = choice.path
    values["seed"] = seed
    values["data"] = {**values.get("data", {}), **data.model_dump(exclude={"masks_per_image"})}
    if (job := values.get("job", JOBS[choice.kind])) != JOBS[choice.kind]:
        raise ConfigError(
            f"tokenizer.preset={choice.preset} is a {job} job, but tokenizer.kind={choice.kind} needs a "
            f"{JOBS[choice.kind]} job"
        )
    if data.channels != COLOURS and choice.kind == "dvae":
        values["model"] = {**values.get("model", {}), "mean": preprocess.mean, "std": preprocess.std}
    origin = f"tokenizer.preset={choice.preset}"
    config: TokenizerRun = (
        validate(KMeansRunConfig, values, origin=origin)
        if choice.kind == "kmeans"
        else validate(TokenizerConfig, values, origin=origin)
    )
    if num_images is None or config.optim.batch_size <= num_images:
        return config
    return config.model_copy(update={"optim": config.optim.model_copy(update={"batch_size": num_images})})


def train_first(first: TokenizerRun | None, worker: Worker) -> None:
    """Finish the run that has to train the tokenizer first, if there is one: the work of one process."""
    if first is None:
        return
    if isinstance(first, KMeansRunConfig):
        fit_kmeans(first, resume=True, worker=worker.alone())
    else:
        train_tokenizer(first, resume=True, worker=worker.alone())
    worker.keep()


def get_tokenizer(choice: TokenizerChoice, grid: tuple[int, int], channels: int) -> Tokenizer:
    """The tokenizer of a pretraining run. Raises ConfigError if it does not fit the patch grid or the channels."""
    tokenizer = load_tokenizer(choice)
    _check_fit(tokenizer, grid, channels)
    return tokenizer


def check_tokenizer(
    choice: TokenizerChoice,
    first: TokenizerRun | None,
    grid: tuple[int, int],
    objective: ObjectiveConfig,
    channels: int,
) -> None:
    """Raise ConfigError or RunError now if the tokenizer would not fit after it has been trained or read."""
    if choice.kind not in RUN_KINDS:
        require_path(choice)
    if first is not None:
        if isinstance(first, KMeansRunConfig):
            check_kmeans(first)
        else:
            check_size(first)
        _check_place(Path(first.run))
    with torch.device("meta"):
        tokenizer = planned_tokenizer(choice, first)
    _check_fit(tokenizer, grid, channels)
    if (wanted := objective.target_perplexity) is not None and wanted >= tokenizer.vocab_size and not objective.hard:
        raise ConfigError(
            f"objective.target_perplexity={wanted:g} must be less than the tokenizer's {tokenizer.vocab_size} codes"
        )


def planned_tokenizer(choice: TokenizerChoice, first: TokenizerRun | None) -> Tokenizer:
    """A tokenizer of the sizes that a run will have, its weights not those of the run: for estimates.

    Raises RunError if nothing tells the sizes.
    """
    if choice.kind in KINDS:
        has_file = choice.path is not None and choice.path != "random" and Path(choice.path).exists()
        sizes = read_stored(choice, str(choice.path)).config if has_file else untold_sizes(choice)
        return KINDS[choice.kind].build(sizes)
    if first is None:
        return load_tokenizer(choice)
    return KMeansTokenizer(first.model).eval() if isinstance(first, KMeansRunConfig) else DiscreteVAE(first.model)


def _check_place(path: Path) -> None:
    """Raise ConfigError if a tokenizer cannot be kept there."""
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "config.yaml").is_file()):
        raise ConfigError(
            f"tokenizer.path='{path}' is neither a tokenizer run nor free for one; name another place, or leave it out"
        )


def _check_fit(tokenizer: Tokenizer, grid: tuple[int, int], channels: int) -> None:
    if tokenizer.channels != channels:
        raise ConfigError(
            f"data.channels is {channels}, but the tokenizer takes {tokenizer.channels}; train one on these images "
            "with tokenizer.kind=dvae tokenizer.path=null tokenizer.preset=photo-tokenizer"
        )
    try:
        tokenizer.view_size(grid)
    except ValueError as error:
        raise ConfigError(f"{error}; check preprocess.image_size, model.patch_size and the tokenizer") from error
