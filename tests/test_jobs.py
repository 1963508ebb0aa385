"""Every preset loads, tells its cost and takes a step at reduced size; `mcbeit train` from the command line."""

import re
from pathlib import Path

import pytest
import timm
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file
from scenes import write_ade20k
from shape_scenes import write_shapes_coco
from tiny import tokenizer_config, write_shapes

from mcbeit import distributed
from mcbeit.cli.main import cli
from mcbeit.config import PRESETS, dump, preset_names
from mcbeit.detection.setup import DetectionConfig
from mcbeit.errors import ConfigError
from mcbeit.finetune_setup import FinetuneConfig
from mcbeit.jobs import cost_lines, describe_job, load_job, run_job
from mcbeit.kmeans_training import KMeansRunConfig
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.segmentation.setup import SegmentationConfig
from mcbeit.tokenizer_training import TokenizerConfig, train_tokenizer

NO_SOURCE = "data.source=null"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


def reduced(name: str, source: Path, folder: Path) -> list[str]:
    """Overrides that make one step of a preset cheap and leave its options as they are."""
    common = [f"data.source={source}", "data.num_workers=0", f"run={folder / 'run'}", "optim.steps=1"]
    common += ["optim.batch_size=8", "log.tensorboard=false"]
    if isinstance(load_job(name, [NO_SOURCE]), KMeansRunConfig):
        weights = folder / "network.safetensors"
        save_file(timm.create_model("test_efficientnet").state_dict(), weights)
        network = ["model.network=test_efficientnet", "model.vocab_size=8", "image_size=32"]
        return [*common, *network, f"weights={weights}"]
    if isinstance(load_job(name, [NO_SOURCE]), TokenizerConfig):
        return [*common, "image_size=16", "model.stride=4", "model.vocab_size=16", "model.dim=16"]
    sizes = ["model.dim=32", "model.depth=2", "model.num_heads=2", "model.patch_size=4", "preprocess.image_size=16"]
    if isinstance(load_job(name, [NO_SOURCE]), SegmentationConfig):
        small = ["model.depth=4", "head.taps=null", "head.channels=8", "head.auxiliary_channels=8"]
        scenes = write_ade20k(folder / "ade")
        return [*common, *sizes, *small, "init=random", f"data.source={scenes}", "scenes.short_side=40"]
    if isinstance(load_job(name, [NO_SOURCE]), DetectionConfig):
        common[-2] = "optim.batch_size=2"
        small = ["model.depth=4", "preprocess.image_size=64", "model.patch_size=8", "window=4", "detector.channels=16"]
        small += ["detector.head_dim=16", "detector.region_samples=8", "detector.anchor_samples=8"]
        small += ["detector.proposals_before=[20,20]", "detector.proposals_after=[10,10]", "eval.backend=fast"]
        return [
            *common,
            *sizes[:1],
            *sizes[2:3],
            *small,
            "init=random",
            f"data.source={write_shapes_coco(folder / 'c')}",
        ]
    if isinstance(load_job(name, [NO_SOURCE]), FinetuneConfig):
        return [*common, *sizes, "init=random", "label_fraction=1", f"eval.source={source}"]
    judge = ["eval.gallery=null", "eval.queries=null"]
    if load_job(name, [NO_SOURCE]).tokenizer.kind == "vqgan":
        # codes of random weights are nearly alike: at the preset's temperature their targets would be refused
        sharp = [] if name == "beit-base" else ["objective.temperature=1e-3"]
        small = "{vocab_size: 64, embed_dim: 32, dim: 32, multipliers: [1, 1, 1], num_blocks: 1}"
        return [*common, *sizes, *judge, "tokenizer.path=random", f"tokenizer.vqgan={small}", *sharp]
    tokenizer = folder / "tokenizer"
    optim = {"steps": 20, "batch_size": 8, "lr": 1e-2, "weight_decay": 0}
    train_tokenizer(tokenizer_config(source, tokenizer, optim=optim))
    return [*common, *sizes, *judge, f"tokenizer.path={tokenizer}", "objective.target_perplexity=1.5"]


@pytest.mark.parametrize("name", preset_names())
def test_preset__takes_a_step_at_reduced_size(name: str, source: Path, tmp_path: Path) -> None:
    assert run_job(load_job(name, reduced(name, source, tmp_path)))["step"] == 0


@pytest.mark.parametrize("name", preset_names())
def test_preset__tells_its_cost_and_can_be_read_back(name: str, tmp_path: Path) -> None:
    text = describe_job(load_job(name, [NO_SOURCE]))
    assert "# parameters: " in text
    assert "# FLOPs per image: " in text
    published = {"segmentation": "ADE20K: 20,210", "detection": "COCO 2017 that show an object: 117,266"}
    assert published.get(load_job(name, [NO_SOURCE]).job, "ImageNet-1K: 1,281,167") in text
    assert text.count("# estimated hours: ") == 4
    (tmp_path / "again.yaml").write_text(text)
    assert load_job(str(tmp_path / "again.yaml")) == load_job(name, [NO_SOURCE])


@pytest.mark.parametrize("name", preset_names())
def test_preset__has_a_header_with_hardware_number_and_command(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert "Hardware: " in header
    assert "Expected: " in header or "Published: " in header or "Expected number: " in header
    assert f"mcbeit train {name}" in header
    assert yaml.safe_load(text)["run"] == f"runs/{name}"


@pytest.mark.parametrize("name", preset_names())
def test_preset__prepares_the_images_that_it_learns_from(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text()
    for made in re.findall(r"mcbeit data prepare \S+ (\S+)", text):
        assert re.search(rf"source: .*\b{made}[/,\]\n]", text), made


def test_preset_mcbeit_base__costs_what_the_recipe_costs() -> None:
    lines = "\n".join(cost_lines(load_job("mcbeit-base")))
    assert "backbone 85.67 M, head 6.30 M" in lines
    assert "backbone 105.1 G, head 5.549 G, tokenizer 33.03 G" in lines
    assert "steps: 500,000 of 2048 images; 625 per epoch" in lines


def test_preset_finetune_base__costs_what_the_recipe_costs() -> None:
    lines = "\n".join(cost_lines(load_job("finetune-base")))
    assert "backbone 85.76 M, head 0.77 M" in lines
    assert "backbone 105.1 G, head 0.004608 G" in lines
    assert "steps: 125,100 of 1024 images; 1,251 per epoch" in lines


def test_cost_lines__of_finetuning_count_the_labels_that_are_used(source: Path) -> None:
    assignments = [f"data.source={source}", f"eval.source={source}", "label_fraction=0.5", "optim.batch_size=4"]
    lines = "\n".join(cost_lines(load_job("finetune-base", assignments)))
    assert f"3 per epoch ({source}: 12)" in lines
    assert "head 0.00 M" in lines


def test_load_job__the_name_of_a_job_is_its_defaults() -> None:
    config = load_job("segmentation", ["init=random", "optim.lr=1e-4"])
    assert isinstance(config, SegmentationConfig)
    assert (config.optim.lr, config.optim.steps, config.preprocess.image_size) == (1e-4, 160_000, 224)
    assert isinstance(load_job("detection"), DetectionConfig)


def test_load_job__knows_its_jobs(tmp_path: Path) -> None:
    assert isinstance(load_job("demo"), PretrainConfig)
    assert isinstance(load_job("finetune-base"), FinetuneConfig)
    assert isinstance(load_job("ade20k-upernet-base"), SegmentationConfig)
    assert isinstance(load_job("coco-maskrcnn-base"), DetectionConfig)
    assert isinstance(load_job("demo-tokenizer"), TokenizerConfig)
    assert isinstance(load_job("kmeans-tokenizer"), KMeansRunConfig)
    with pytest.raises(ConfigError, match=r"one of pretrain, finetune, segmentation, .*, found 'serve'"):
        load_job("demo", ["job=serve"])


def test_train__runs_from_images_to_a_backbone_in_one_command(source: Path, tmp_path: Path) -> None:
    preset = tmp_path / "tokenizer.yaml"
    optim = {"steps": 20, "batch_size": 8, "lr": 1e-2, "weight_decay": 0}
    preset.write_text(dump(tokenizer_config(source, tmp_path / "unused", optim=optim)))
    overrides = ["model.dim=32", "model.depth=2", "model.num_heads=2", "model.patch_size=4", "preprocess.image_size=16"]
    overrides += ["optim.steps=2", "optim.batch_size=8", "data.num_workers=0", f"data.source={source}"]
    overrides += [f"run={tmp_path / 'run'}", f"tokenizer.preset={preset}", "objective.target_perplexity=1.5"]
    result = CliRunner().invoke(cli, ["train", "mcbeit-tiny", *overrides])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'run'}: complete after 2 steps, loss {float(result.stdout.split()[-1]):.4f}\n"
    assert (tmp_path / "run" / "tokenizer" / "summary.json").exists()


def test_train__finetunes_and_tells_the_accuracy(source: Path, tmp_path: Path) -> None:
    overrides = reduced("finetune-demo", source, tmp_path)
    result = CliRunner().invoke(cli, ["train", "finetune-demo", *overrides])
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"\S+: complete after 1 steps, loss \d\.\d{4}, top-1 [01]\.\d{4}\n", result.stdout)


def test_train__prints_the_config_and_starts_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["train", "demo", f"run={tmp_path / 'run'}", NO_SOURCE, "--print-config"])
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["run"] == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_load_job__omega_replaces_the_refine_weight_of_a_preset() -> None:
    config = load_job("mcbeit-base", ["objective.omega=0.3"])
    assert isinstance(config, PretrainConfig)
    assert config.objective.refine_weight == 0.3


def test_cost_lines__count_what_is_not_there_yet_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = list(
        cost_lines(load_job("demo", [f"tokenizer.path={tmp_path}/none", "data.source=data/fashion-mnist/train"]))
    )
    steps = next(line for line in lines if line.startswith("steps: "))
    assert "make it: mcbeit data prepare fashion-mnist data/fashion-mnist" in steps
    assert "with the images of ImageNet-1K" in steps
    assert f"a tokenizer is trained first, into {tmp_path}/none: " in "\n".join(lines)


def test_train__says_how_to_go_on_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(config: object, *, resume: bool, scale: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(distributed, "launch", interrupt)
    result = CliRunner().invoke(cli, ["train", "demo"])
    assert result.exit_code == 1
    assert "stopped; go on from the last checkpoint of runs/demo with the same command and --resume" in result.stderr


def test_train__explains_every_mistake_at_once() -> None:
    result = CliRunner().invoke(cli, ["train", "demo", "optim.wieght_decay=1", "mask.ratio=2"])
    assert result.exit_code == 2
    assert "unknown key 'optim.wieght_decay'; did you mean 'optim.weight_decay'?" in result.stderr
    assert "mask.ratio" in result.stderr
