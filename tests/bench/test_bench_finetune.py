"""The task finetune: by the recipe of `mcbeit train`, last and best apart, in a run that goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import write_colours
from official import official_state, pretrain_checkpoint, save

from mcbeit.bench.data import BenchData
from mcbeit.bench.features import FeatureCache
from mcbeit.bench.manifest import Used
from mcbeit.bench.model import BenchModel
from mcbeit.bench.tasks.finetune import BEST, PRESETS, TASK, FinetuneTaskConfig, make_job, run
from mcbeit.bench.tasks.task import Outcome
from mcbeit.config import override, read_values, validate
from mcbeit.embed_task import StreamConfig
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.finetune_setup import FinetuneConfig

SMALL = {"optim": {"epochs": 2, "warmup_epochs": 0.5, "batch_size": 8, "lr": 3e-3}, "compute": {"threads": 1}}
UNMIXED = {"policy": None, "erase": 0, "mixup": 0, "cutmix": 0}


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images to train on, 12 to test on, of three classes."""
    return write_colours(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official pretraining of a backbone of 16 px."""
    return save(
        pretrain_checkpoint(official_state("pretrain"), input_size=16), tmp_path_factory.mktemp("weights") / "pt.pth"
    )


def model_of(source: Path | str, out: Path, **config: Any) -> BenchModel:
    return BenchModel(str(source), StreamConfig(**config), FeatureCache(out / "features"), out=out)


def measure(weights: Path, colours: Path, out: Path, *, limit: int | None = None, **settings: Any) -> Outcome:
    data = BenchData("colours", str(colours), limit=limit)
    return run(model_of(weights, out), data, validate(FinetuneTaskConfig, {**SMALL, **settings}))


def test_run__tells_the_last_epoch_and_the_best_one_apart(weights: Path, colours: Path, tmp_path: Path) -> None:
    found = measure(weights, colours, tmp_path, augment=UNMIXED)
    assert found.primary == "top1"
    assert found.metrics["top1"].selection == "last"
    assert found.metrics[BEST].selection == "best on the test images"
    assert found.metrics[BEST].value >= found.metrics["top1"].value
    assert found.metrics["top1"].num_samples == 12
    (curve,) = found.curves
    assert curve.x == (1.0, 2.0)
    assert curve.lines[""][-1] == found.metrics["top1"].value
    assert found.answers is not None
    assert found.answers.unpack().mean() == found.metrics["top1"].value
    assert found.confusion is not None
    assert np.array(found.confusion).sum(axis=1).tolist() == [4, 4, 4]
    assert len(found.per_class["top1"]) == 3
    assert (found.used["train"].num_used, found.used["val"].num_used) == (24, 12)
    assert found.remarks[0].startswith("2 epochs, batch 8, lr 0.003, layer decay 0.65 (official)")


def test_run__goes_on_and_is_kept_for_the_same_question_only(weights: Path, colours: Path, tmp_path: Path) -> None:
    first = measure(weights, colours, tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    again = measure(weights, colours, tmp_path)
    assert again.metrics == first.metrics
    assert again.seconds["finetune"] < first.seconds["finetune"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["top1"] == first.metrics["top1"].value
    measure(weights, colours, tmp_path, compute={"threads": 2})
    assert len(list((tmp_path / "runs").iterdir())) == 1
    measure(weights, colours, tmp_path, seed=1)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_run__of_a_share_of_the_labels_chosen_on_held_out_images(weights: Path, colours: Path, tmp_path: Path) -> None:
    optim = {**SMALL["optim"], "batch_size": 3}
    found = measure(weights, colours, tmp_path, label_fraction=0.5, eval={"held_out": 0.25}, optim=optim)
    assert found.used["train"].num_used == 9
    assert found.metrics[BEST].selection == "held-out images"


def test_run__with_a_limit_uses_the_images_of_the_other_tasks(weights: Path, colours: Path, tmp_path: Path) -> None:
    found = measure(weights, colours, tmp_path, limit=9)
    assert (found.used["train"].num_used, found.used["val"].num_used) == (9, 9)


def test_run__leaves_out_what_cannot_be_read(weights: Path, tmp_path: Path) -> None:
    colours = write_colours(tmp_path / "colours")
    bad = colours / "val" / "green" / "3.png"
    for path in (bad, colours / "train" / "red" / "1.png"):
        path.write_bytes(b"no image")
    model = model_of(weights, tmp_path, data={"max_corrupt_fraction": 0.1})
    found = run(model, BenchData("colours", str(colours)), validate(FinetuneTaskConfig, SMALL))
    assert found.used["train"] == Used(num_used=23, num_unreadable=1)
    assert found.used["val"].unreadable == (str(bad),)
    assert found.metrics["top1"].num_samples == 11


def test_make_job__takes_recipe_weights_and_preprocessing(weights: Path, colours: Path, tmp_path: Path) -> None:
    data = BenchData("colours", str(colours))
    job = make_job(model_of(weights, tmp_path, threads=2, image_size=24), data, FinetuneTaskConfig())
    assert (job.optim.epochs, job.optim.layer_decay, job.optim.lr) == (100, 0.65, 4e-3)
    assert (job.init, job.model.shape, job.model.bias_tables) == (str(weights), (32, 2, 2), "per-block")
    assert (job.preprocess.image_size, job.preprocess.mean) == (24, (0.485, 0.456, 0.406))
    assert job.compute.threads == 2
    large = make_job(model_of(weights, tmp_path), data, FinetuneTaskConfig(recipe="finetune-large"))
    assert (large.optim.epochs, large.optim.layer_decay, large.model.drop_path) == (50, 0.75, 0.2)


def test_config__a_recipe_that_is_named_is_told_in_full(tmp_path: Path) -> None:
    """Or a result would stand for that of a file that has changed since."""
    told = []
    for lr in (1e-3, 2e-3):
        recipe = {**read_values("finetune-base"), "optim": {**read_values("finetune-base")["optim"], "lr": lr}}
        (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
        told.append(FinetuneTaskConfig(recipe=str(tmp_path / "mine.yaml")).described())
    assert [one["resolved"]["optim"]["lr"] for one in told] == [1e-3, 2e-3]
    assert "resolved" not in FinetuneTaskConfig().described()


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets__are_settings_of_the_task(preset: str) -> None:
    config = validate(FinetuneTaskConfig, override(PRESETS[preset], ["optim.lr=1e-4", "label_fraction=0.1"]))
    job = validate(FinetuneConfig, config.values("finetune-base"))
    set_here = {**PRESETS[preset].get("optim", {}), "lr": 1e-4}
    assert job.optim.model_dump().items() >= set_here.items()
    assert (job.label_fraction, job.optim.layer_decay) == (0.1, 0.65)


def test_config__tells_mistakes_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.wieght_decay'; did you mean 'optim\.weight_decay'"):
        validate(FinetuneTaskConfig, {"optim": {"wieght_decay": 1}})
    with pytest.raises(ConfigError, match="'finetune-bas' is neither a preset nor a file; did you mean"):
        validate(FinetuneTaskConfig, {"recipe": "finetune-bas"})
    with pytest.raises(ConfigError, match="label_fraction: input should be greater than 0"):
        validate(FinetuneTaskConfig, {"label_fraction": 0})


def test_task__needs_weights_of_a_beit(colours: Path, tmp_path: Path) -> None:
    assert (TASK.needs, TASK.splits) == ("weights", ("train", "val"))
    other = model_of("timm:test_vit", tmp_path, weights="random")
    with pytest.raises(WeightsError, match="is a VisionTransformer, not a BEiT"):
        make_job(other, BenchData("colours", str(colours)), FinetuneTaskConfig())
