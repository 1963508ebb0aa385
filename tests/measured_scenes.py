"""Models and settings for tasks on tiny scenes."""

from pathlib import Path
from typing import Any

from mcbeit.bench.features import FeatureCache
from mcbeit.bench.model import BenchModel
from mcbeit.config import validate
from mcbeit.embed_task import StreamConfig


def model_of(source: Path | str, out: Path) -> BenchModel:
    """A model whose images are read in this process."""
    config = validate(StreamConfig, {"data": {"num_workers": 0}})
    return BenchModel(str(source), config, FeatureCache(out / "features"), out=out)


def settings(**changes: Any) -> dict[str, Any]:
    """UperNet in three steps on crops of 32 px of scenes of 40 px."""
    values: dict[str, Any] = {
        "recipe": "segmentation-demo",
        "optim": {"steps": 3, "batch_size": 4, "warmup_steps": 1},
        "preprocess": {"image_size": 32},
        "head": {"channels": 8, "auxiliary_channels": 8},
        "scenes": {"short_side": 40, "long_side": 160},
    }
    return {**values, **changes}
