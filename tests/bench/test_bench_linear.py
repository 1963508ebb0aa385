"""The task `linear`: the recipes of BEiT, MAE and DINOv2, on random crops or on vectors that are kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backbones import backbone, save_backbone
from measured import write_colours

from mcbeit.bench.harness import make_plan, run
from mcbeit.bench.linear_recipes import RECIPES, columns_of, head_specs
from mcbeit.bench.result import Result
from mcbeit.bench.sweep import Column
from mcbeit.bench.tasks.linear import LinearConfig
from mcbeit.bodies import BeitBody
from mcbeit.errors import BenchError, Interrupted
from mcbeit.stop import StopRequest


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("images") / "colours", train=20)


@pytest.fixture(scope="module")
def beit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_backbone(tmp_path_factory.mktemp("weights") / "beit.pth", backbone()))


def measure(
    model: str, colours: Path, out: Path, *assignments: str, preset: Any = "smoke", stop: StopRequest | None = None,
    resume: bool = False,
) -> Result:  # fmt: skip
    found = make_plan(["linear"], [model], [f"colours={colours}"], preset=preset, out=out, assignments=assignments)
    (result,) = run(found, resume=resume, stop=stop or StopRequest())
    return result


@pytest.mark.parametrize(("recipe", "rate", "epochs"), [("beit", 1.0, 20), ("mae", 100.0, 40)])
def test_recipes_learn_colours(recipe: str, rate: float, epochs: int, beit: str, colours: Path, tmp_path: Path) -> None:
    few = (f"linear.lr=[{rate}]", f"linear.epochs={epochs}", "linear.batch_size=6")
    found = measure(beit, colours, tmp_path, f"linear.recipe={recipe}", *few)
    assert found.metrics["top1"].value > 0.7
    assert len(found.curves[0].x) == epochs


def test_beit_has_a_head_per_block_and_chooses_on_held_out_images(beit: str, colours: Path, tmp_path: Path) -> None:
    found = measure(beit, colours, tmp_path)
    assert [name for name in found.metrics if name.endswith("last epoch")] == [
        f"top1, layer {layer}, last epoch" for layer in (1, 2, 3)
    ]
    assert found.metrics["top1"].selection == "held-out images"
    assert found.remarks[0].startswith("head: layer ")
    assert "without augmentation: every epoch sees the same vectors" in found.remarks


def test_the_official_choice_is_there_and_called_what_it_is(beit: str, colours: Path, tmp_path: Path) -> None:
    found = measure(beit, colours, tmp_path, "linear.selection=test")
    assert found.metrics["top1"].selection == "best on the test images"
    last = [metric.value for name, metric in found.metrics.items() if name.endswith("last epoch")]
    assert found.metrics["top1"].value >= max(last)


def test_one_head_has_nothing_to_choose(beit: str, colours: Path, tmp_path: Path) -> None:
    found = measure(beit, colours, tmp_path, "linear.recipe=mae")
    assert found.metrics["top1"].selection == "last"
    assert set(found.metrics) == {"top1"}


def test_a_grid_of_rates_is_chosen_from_on_held_out_images(
    beit: str, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "dinov2", RECIPES["dinov2"]._replace(steps_per_epoch=4))
    found = measure(beit, colours, tmp_path, "linear.recipe=dinov2", "linear.lr=[0.01,0.5]")
    assert len([name for name in found.metrics if name.endswith("last epoch")]) == 4 * 2  # inputs x rates


def test_random_crops_go_through_the_network(beit: str, colours: Path, tmp_path: Path) -> None:
    found = measure(
        beit, colours, tmp_path, "linear.augment=true", "linear.lr=[0.1]", "linear.epochs=6", "linear.batch_size=20",
        "data.num_workers=0",
    )  # fmt: skip
    assert found.metrics["top1"].value > 0.6
    assert "without augmentation: every epoch sees the same vectors" not in found.remarks


def test_a_graph_has_no_random_crops(colours: Path, tmp_path: Path) -> None:
    refused = r"linear: not possible with 'fake'.*as weights are needed; possible: .*linear with linear.augment=false"
    with pytest.raises(BenchError, match=refused):
        measure("fake", colours, tmp_path, preset="paper")
    found = measure("fake", colours, tmp_path)
    assert found.remarks[-1] == "the heads see the embedding, as the model gives no other vector"


def test_stopped_and_gone_on_with_it_is_the_same_to_the_bit(beit: str, colours: Path, tmp_path: Path) -> None:
    whole = measure(beit, colours, tmp_path / "whole", "linear.epochs=4")
    stop = StopRequest()
    measure(beit, colours, tmp_path / "part", "linear.epochs=1")  # its vectors stay
    stop.signal = 15
    with pytest.raises(Interrupted, match=r"stopped after 1 of 4 epochs of the linear probe"):
        measure(beit, colours, tmp_path / "part", "linear.epochs=4", stop=stop)
    again = measure(beit, colours, tmp_path / "part", "linear.epochs=4", resume=True)
    assert (again.metrics, again.answers, again.curves) == (whole.metrics, whole.answers, whole.curves)


def test_the_recipes_are_those_of_the_publications() -> None:
    beit, mae, dinov2 = (LinearConfig(recipe=name).resolved() for name in ("beit", "mae", "dinov2"))
    assert (beit.training.epochs, beit.batch_size, beit.peak_lrs(1024)) == (100, 1024, [4e-3])
    assert (mae.training.epochs, mae.training.warmup_epochs, mae.batch_size) == (90, 10, 16384)
    assert mae.peak_lrs(16384) == pytest.approx([6.4])
    assert dinov2.training.epochs * (dinov2.steps_per_epoch or 0) == 12500
    assert len(dinov2.lrs) == 13
    assert LinearConfig(recipe="mae", epochs=45).resolved().training.warmup_epochs == 5


def test_heads_see_what_the_publications_say() -> None:
    body = BeitBody(backbone())
    assert head_specs("beit", columns_of("beit", body), [0.1])[1].columns == (2, 3)
    assert columns_of("mae", body) == [Column(3, "cls", True)]
    names = {spec.name: spec.columns for spec in head_specs("dinov2", columns_of("dinov2", body), [0.1])}
    assert names == {
        "cls": (2,),
        "cls and mean": (2, 3),
        "cls of 3 blocks": (0, 1, 2),
        "cls of 3 blocks and mean": (0, 1, 2, 3),
    }
    assert np.unique([spec.lr for spec in head_specs("dinov2", columns_of("dinov2", body), [0.1, 0.2])]).tolist() == [
        0.1,
        0.2,
    ]


@pytest.mark.parametrize("rate", [0, -0.1])
def test_a_rate_is_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        LinearConfig(lr=(rate,))
