"""A pretraining run, read back to be judged."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

import mcbeit
from mcbeit.checkpoint import CheckpointFolder, load_checkpoint
from mcbeit.config import dump
from mcbeit.device import Precision, choose_device, choose_precision
from mcbeit.errors import RunError
from mcbeit.jobs import load_job
from mcbeit.masked import MaskedImageModel
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.tokenizer import Tokenizer
from mcbeit.tokenizer_choice import load_tokenizer
from mcbeit.vit import VisionTransformer


@dataclass(frozen=True)
class TrainedRun:
    """The last checkpoint of a run, ready to be asked."""

    path: Path
    config: PretrainConfig
    step: int  # finished steps
    temperature: float
    model: MaskedImageModel  # in evaluation mode
    teacher: VisionTransformer | None
    device: torch.device
    precision: Precision

    @property
    def backbone(self) -> VisionTransformer:
        """The trained backbone."""
        return self.model.backbone


def read_config(path: Path) -> PretrainConfig:
    """The config of a pretraining run. Raises RunError if the folder is no such run."""
    if not (path / "config.yaml").is_file():
        state = "has no config.yaml" if path.is_dir() else "is a file" if path.is_file() else "does not exist"
        raise RunError(f"'{path}' is not a run: it {state}; name the folder that `mcbeit train` wrote, as runs/demo")
    config = load_job(str(path / "config.yaml"))
    if not isinstance(config, PretrainConfig):
        raise RunError(f"'{path}' is a {config.job} run; a report is of pretraining: name a run whose job is pretrain")
    return config


def last_checkpoint(path: Path) -> Path:
    """The newest complete checkpoint of a run. Raises RunError if there is none yet."""
    folder = CheckpointFolder(path / "checkpoints")
    steps = folder.steps()
    if not steps:
        raise RunError(
            f"the run '{path}' has no complete checkpoint yet; go on with: mcbeit train {path / 'config.yaml'} --resume"
        )
    return folder.folder(steps[-1])


def fingerprint(path: Path) -> dict[str, str]:
    """What a report depends on: if it is the same, so are the numbers. The content of images is not looked at.

    Raises RunError if the folder is no pretraining run or has no checkpoint.
    """
    config = read_config(path)
    checkpoint, metrics = last_checkpoint(path), path / "metrics.jsonl"
    with (checkpoint / "model.safetensors").open("rb") as file:
        model = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "mcbeit": mcbeit.__version__,
        "checkpoint": checkpoint.name,
        "model": model,
        "config": hashlib.sha256(dump(config).encode()).hexdigest(),
        "metrics": hashlib.sha256(metrics.read_bytes() if metrics.exists() else b"").hexdigest(),
    }


def load_trained(path: Path) -> TrainedRun:
    """Read the last checkpoint of a run; raises RunError if there is none."""
    config = read_config(path)
    checkpoint = load_checkpoint(last_checkpoint(path))
    device = choose_device()
    weights = checkpoint.tensors["model"]
    model = MaskedImageModel(_backbone(config), len(weights["lm_head.bias"]), config.objective)
    model.load_state_dict(weights)
    teacher = None
    if "teacher" in checkpoint.tensors:
        teacher = _backbone(config)
        teacher.load_state_dict(checkpoint.tensors["teacher"])
        teacher = teacher.to(device).eval()
    precision = choose_precision(config.compute.precision, device)
    temperature = float(checkpoint.numbers["temperature"])
    return TrainedRun(path, config, checkpoint.step, temperature, model.to(device).eval(), teacher, device, precision)


def _backbone(config: PretrainConfig) -> VisionTransformer:
    return VisionTransformer(config.model, image_size=config.preprocess.image_size, channels=config.data.channels)


def read_tokenizer(config: PretrainConfig, path: Path) -> Tokenizer:
    """The tokenizer of the run at `path`, on the CPU. Raises RunError if its weights are not there any more."""
    choice = config.tokenizer
    if choice.path == "random":
        raise RunError("the run's tokenizer had random weights, which are not kept")
    if choice.preset is not None and choice.path is None:
        choice = choice.model_copy(update={"path": str(path / "tokenizer")})
    return load_tokenizer(choice)
