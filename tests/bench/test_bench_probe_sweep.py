"""The task `probe-sweep`: which layer, pooling, norm and scaling, with evidence, and an export of the choice."""

from pathlib import Path

import pytest
from backbones import backbone, save_backbone
from measured import write_colours

from mcbeit.bench.harness import make_plan, run
from mcbeit.bench.result import Result
from mcbeit.encoder import load_encoder
from mcbeit.errors import BenchError
from mcbeit.stop import StopRequest


def measure(model: Path | str, folder: Path, *assignments: str) -> Result:
    colours = write_colours(folder / "colours", train=20)
    found = make_plan(
        ["probe-sweep"], [str(model)], [f"colours={colours}"], preset="short", out=folder / "out",
        assignments=["probe-sweep.max_iterations=20", *assignments],
    )  # fmt: skip
    (result,) = run(found, resume=False, stop=StopRequest())
    return result


@pytest.fixture(scope="module")
def beit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("weights") / "beit.pth", backbone())


def test_every_vector_is_judged_and_the_best_is_measured(beit: Path, tmp_path: Path) -> None:
    found = measure(beit, tmp_path, "probe-sweep.k=5")
    held_out = [name for name in found.metrics if name.startswith("knn on held-out images: ")]
    assert len(held_out) == 3 * 3 * 2 * 3  # layers, poolings, norms, scalings
    assert found.metrics[found.primary].selection == "held-out images"
    assert found.data.splits["train"].used.num_used == 60
    assert found.remarks[-1].startswith("use this vector: layer ")
    assert {curve.title for curve in found.curves} >= {"knn, scaling none", "linear, scaling whiten"}
    assert set(found.curves[0].lines) == {
        "mean",
        "mean, final norm",
        "cls",
        "cls, final norm",
        "gem",
        "gem, final norm",
    }
    best = max(found.metrics[name].value for name in held_out)
    assert f"knn {100 * best:.2f} %" in found.remarks[-1]


def test_the_choice_is_exported_scaling_included(beit: Path, tmp_path: Path) -> None:
    out = tmp_path / "best"
    found = measure(
        beit, tmp_path, "probe-sweep.layers=[2]", "probe-sweep.pooling=[mean]", "probe-sweep.scaling=[standardise]",
        f"probe-sweep.export={out}",
    )  # fmt: skip
    assert found.remarks[-1] == f"{out}: the best vector, exported"
    spec = load_encoder(out).spec
    assert (spec.layer, spec.pooling) == (2, "mean")
    assert spec.whitening is not None


def test_too_few_images_to_whiten_are_told(beit: Path, tmp_path: Path) -> None:
    found = measure(beit, tmp_path, "limit=24", "probe-sweep.layers=[1]")
    assert "scaling whiten left out: it needs more images than the 32 numbers of a vector" in found.remarks


def test_a_graph_has_no_other_layers(tmp_path: Path) -> None:
    refused = (
        r"probe-sweep: not possible with 'fake', the fake encoder, as weights are needed; possible: knn, linear, logreg"
    )
    with pytest.raises(BenchError, match=refused):
        measure("fake", tmp_path)
