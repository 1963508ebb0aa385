"""Which tokenizer a pretraining run uses: where its weights come from, and how its temperature is found."""

import copy
import math
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from mcbeit.checkpoint import CheckpointFolder
from mcbeit.config import Config, UserPath, validate
from mcbeit.dvae import DiscreteVAE, DiscreteVAEConfig
from mcbeit.errors import RunError, WeightsError
from mcbeit.kmeans import KMeansConfig, KMeansTokenizer
from mcbeit.masked import ObjectiveConfig
from mcbeit.preprocess import Interpolation
from mcbeit.targets import code_probabilities, entropy
from mcbeit.tokenizer import Tokenizer, count_codes, perplexity
from mcbeit.tokenizer_files import StoredTokenizer, read_tokenizer
from mcbeit.tokenizer_kinds import KINDS
from mcbeit.vqgan import GumbelVQGANConfig

TEMPERATURE_BOUNDS = (1e-4, 1e4)
SLICE = 8  # images that a tokenizer sees at once where no training limits the batch: VQGAN takes 30 MiB for each
JOBS = {"dvae": "tokenizer", "kmeans": "kmeans-tokenizer"}  # kinds that a run of ours trains -> its job
RUN_KINDS = tuple(JOBS)
UNIFORM_MARGIN = 0.02  # nats below log V at which targets say nothing


class TokenizerChoice(Config):
    """The frozen tokenizer of a pretraining run."""

    kind: Literal["dvae", "kmeans", "vqgan", "vqgan-ema", "dall-e", "vqkd"] = "vqgan"
    # a tokenizer run (dvae, kmeans), the published files or converted ones (the others), or 'random', for speed tests
    path: UserPath | None = None
    preset: str | None = None  # train this preset on the same images first, where `path` does not exist yet
    interpolation: Interpolation | None = None  # of the tokenizer's view; None: as the tokenizer was trained
    min_agreement: float = Field(0.98, ge=0, le=1)  # share of equal codes from which low precision is used for it
    vqgan: GumbelVQGANConfig = GumbelVQGANConfig()  # sizes of vqgan and vqgan-ema, where no file tells them

    @model_validator(mode="after")
    def _a_preset_is_a_run(self) -> "TokenizerChoice":
        if self.preset is not None and self.kind not in RUN_KINDS:
            raise ValueError(
                f"tokenizer.preset={self.preset} trains a tokenizer of kind {' or '.join(RUN_KINDS)}, found "
                f"tokenizer.kind={self.kind}; set tokenizer.preset=null to use weights of another kind"
            )
        return self


def load_tokenizer(choice: TokenizerChoice) -> Tokenizer:
    """The tokenizer, frozen. Raises RunError or WeightsError if there are no weights of its kind at its path."""
    path = require_path(choice)
    if choice.kind in RUN_KINDS:
        return load_run(Path(path), choice.kind).frozen()
    if path == "random":
        return KINDS[choice.kind].build(untold_sizes(choice)).frozen()
    return read_stored(choice, path).build().frozen()


def require_path(choice: TokenizerChoice) -> str:
    """Where the weights are. Raises RunError if they are not there."""
    if choice.path is None:
        files = f" ({KINDS[choice.kind].files})" if choice.kind in KINDS else ""
        raise RunError(
            f"tokenizer.path is not set: name the weights of a {choice.kind} tokenizer{files}, or train one of your "
            "own with tokenizer.kind=dvae tokenizer.preset=photo-tokenizer"
        )
    if choice.path != "random" and not Path(choice.path).exists():
        hint = f"; train one: {_how_to_train(choice.kind, choice.path)}" if choice.kind in RUN_KINDS else ""
        raise RunError(f"there is no trained tokenizer at '{choice.path}'{hint}")
    return choice.path


def read_stored(choice: TokenizerChoice, path: str) -> StoredTokenizer:
    """What a file of weights holds. Raises WeightsError if it is of another kind, or of other sizes than configured."""
    stored = read_tokenizer(path, kind=choice.kind)
    is_configured = choice.vqgan != GumbelVQGANConfig() and isinstance(stored.config, GumbelVQGANConfig)
    if is_configured and choice.vqgan != stored.config:
        raise WeightsError(
            f"'{stored.path}' has other sizes than tokenizer.vqgan says: {stored.config!r}; leave tokenizer.vqgan out"
        )
    return stored


def untold_sizes(choice: TokenizerChoice) -> Config:
    """The sizes of a tokenizer where no file tells them."""
    kind = KINDS[choice.kind]
    return choice.vqgan if kind.config is GumbelVQGANConfig else kind.config()


def load_run(run: Path, kind: str) -> Tokenizer:
    """The tokenizer of a finished tokenizer run. Raises RunError if the run is none, of another kind or unfinished."""
    checkpoint = CheckpointFolder(run / "checkpoints").newest()
    if checkpoint is None:
        raise RunError(f"there is no trained tokenizer at '{run}'; train one: {_how_to_train(kind, str(run))}")
    numbers = checkpoint.numbers
    if "tokenizer" not in numbers:
        raise RunError(f"'{run}' is no tokenizer run; name the folder of a run whose job is {JOBS[kind]}")
    if (found := numbers.get("kind", "dvae")) != kind:
        raise RunError(f"'{run}' is a tokenizer of kind {found}, not {kind}; set tokenizer.kind={found}")
    if "temperature" not in numbers:
        raise RunError(
            f"the tokenizer run '{run}' has no usable codes: it is unfinished or its codes have collapsed; go on with: "
            f"mcbeit train {run / 'config.yaml'} --resume"
        )
    tokenizer: Tokenizer
    if kind == "kmeans":
        tokenizer = KMeansTokenizer(validate(KMeansConfig, numbers["tokenizer"], origin=str(run)))
    else:
        tokenizer = DiscreteVAE(validate(DiscreteVAEConfig, numbers["tokenizer"], origin=str(run)))
    tokenizer.load_state_dict(checkpoint.tensors["model"], assign=True)  # also where a plan was made on meta
    tokenizer.default_temperature = numbers["temperature"]
    tokenizer.interpolation = numbers.get("interpolation", tokenizer.interpolation)
    return tokenizer


def _how_to_train(kind: str, run: str) -> str:
    return f"mcbeit train {'demo-tokenizer' if kind == 'dvae' else 'kmeans-tokenizer'} run={run}"


def calibrate_temperature(logits: Float[Tensor, "batch patch code"], target_perplexity: float) -> float:
    """The temperature at which exp of the mean entropy of equation (1) is `target_perplexity`, by bisection.

    Raises RunError if it would lie on a bound: then the logits cannot give that many choices.
    """
    low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
    goal = math.log(target_perplexity)
    if not mean_entropy(logits, math.exp(low)) < goal < mean_entropy(logits, math.exp(high)):
        raise RunError(
            f"no temperature between {TEMPERATURE_BOUNDS[0]:g} and {TEMPERATURE_BOUNDS[1]:g} gives the patches "
            f"{target_perplexity:g} choices out of {logits.shape[-1]} codes; check objective.target_perplexity and "
            "whether the tokenizer is trained"
        )
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if mean_entropy(logits, math.exp(middle)) > goal else (middle, high)
    return math.exp((low + high) / 2)


def mean_entropy(logits: Float[Tensor, "batch patch code"], temperature: float) -> float:
    """The mean entropy of equation (1) over all patches, in nats."""
    return float(entropy(code_probabilities(logits, temperature=temperature)).mean())


def choose_temperature(
    tokenizer: Tokenizer, logits: Float[Tensor, "batch patch code"], objective: ObjectiveConfig
) -> float:
    """The configured, calibrated or default temperature, checked on the logits of some images.

    Hard targets have none: 1 then stands for it. Raises RunError if the codes have collapsed or if the targets would be
    uniform, which no loss curve would show.
    """
    used = perplexity(count_codes(logits))
    if used < 1.5:
        raise RunError(
            f"the tokenizer has collapsed: its codes have a perplexity of {used:.2f} on the first images, so there is "
            "nothing to predict; train it longer or check tokenizer.path"
        )
    if objective.hard:
        return 1.0
    if objective.target_perplexity is not None:
        return calibrate_temperature(logits, objective.target_perplexity)
    temperature = objective.temperature or tokenizer.default_temperature
    spread, limit = mean_entropy(logits, temperature), math.log(logits.shape[-1])
    if spread > limit - UNIFORM_MARGIN:
        raise RunError(
            f"at temperature {temperature:g} the targets are uniform: their mean entropy is {spread:.3f} of at most "
            f"{limit:.3f} nats. Lower objective.temperature, or set objective.target_perplexity (4 is a good start)"
        )
    return temperature


def low_precision(
    tokenizer: Tokenizer, images: Tensor, dtype: torch.dtype, min_agreement: float
) -> tuple[Tokenizer, float]:
    """The tokenizer in channels_last format, and in `dtype` if enough of its codes stay the same; and that share."""
    tokenizer = tokenizer.to(memory_format=torch.channels_last)
    if dtype == torch.float32:
        return tokenizer, 1.0
    low = copy.deepcopy(tokenizer).to(dtype)
    agreement = float((logits_of(tokenizer, images).argmax(-1) == logits_of(low, images).argmax(-1)).float().mean())
    return (low if agreement >= min_agreement else tokenizer), agreement


@torch.no_grad()
def logits_of(
    tokenizer: Tokenizer, images: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch patch code"]:
    """The code logits of many images, a few at a time, in the dtype of the tokenizer."""
    dtype = next(tokenizer.parameters()).dtype
    return torch.cat([tokenizer.code_logits(part.to(dtype)) for part in images.split(SLICE)])
