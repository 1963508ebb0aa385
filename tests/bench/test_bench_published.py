"""Published numbers, and when a result may be held against them."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcbeit.bench.manifest import Manifest, Used
from mcbeit.bench.published import (
    FILE,
    PROTOCOL,
    PublishedComparison,
    PublishedFile,
    PublishedRow,
    check_reproduces,
    compare_published,
    noise_band,
    percent,
    published_table,
    read_published,
)
from mcbeit.bench.result import DataFacts, Metric, ModelFacts, Result, Split, TaskFacts
from mcbeit.bench.tasks import TASKS
from mcbeit.config import read_values, validate
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import ConfigError
from mcbeit.preprocess import Preprocess

ROWS = {row.key: row for row in read_published().rows}
DINO = ROWS["dino-vit-b.knn"]  # 76.1 %, tolerance 0.2 %
VIT_B = EncoderSpec(
    name="vit_base_patch16_224.dino", fingerprint="0" * 64, dim=768, pooling="cls", layer=12, num_layers=12,
    final_norm=True, normalize=False, grid=(14, 14), patch_dim=768, preprocess=Preprocess(),
)  # fmt: skip


def split(num_images: int, num_classes: int) -> Split:
    manifest = Manifest(
        num_images=num_images, num_lost=0, num_classes=num_classes, names_sha256="0" * 64, labels_sha256="1" * 64,
        content_sha256="2" * 64, num_hashed=256,
    )  # fmt: skip
    return Split(manifest=manifest, used=Used(num_used=num_images, num_unreadable=0))


def plain(row: PublishedRow) -> dict[str, Any]:
    """A result of the row's task, images and metric, with the settings of our own task."""
    config = TASKS[row.task].config().model_dump(mode="json") if row.task in TASKS else {}
    known = read_published().data[row.data]
    splits = {name: split(count, known.num_classes or 0) for name, count in known.splits.items()}
    return Result(
        task=TaskFacts(name=row.task, version=1, preset="paper", protocol=config),
        model=ModelFacts(source="timm:x", kind="torch", spec=VIT_B, reproduces=row.model),
        data=DataFacts(name=row.data, place="/data", layout="folders", splits=splits),
        primary=row.metric,
        metrics={row.metric: Metric(value=row.value, selection=row.selection or "none")},
    ).model_dump(mode="json")


def measured(row: PublishedRow, value: float | None = None, **changes: Any) -> Result:
    """A result that meets the row's conditions, of its value unless told; `changes` name places with __ for dots."""
    facts = plain(row)
    facts["metrics"][row.metric]["value"] = row.value if value is None else value
    for path, wanted in [*row.conditions.items(), *((key.replace("__", "."), new) for key, new in changes.items())]:
        section, _, last = path.rpartition(".")
        at(facts, section)[last] = wanted
    return Result.model_validate(facts)


def at(facts: Any, path: str) -> Any:
    """What stands at a dotted path; KeyError if there is no such place."""
    for name in path.split("."):
        facts = facts[name]
    return facts


def compared(result: Result, row: PublishedRow = DINO) -> PublishedComparison:
    (found,) = compare_published(result, [row])
    return found


def is_set(row: PublishedRow) -> bool:
    """Whether the row says by conditions how its task must be set."""
    return any(path.startswith(PROTOCOL) for path in row.conditions)


# --- the file ---


def test_read_published__has_what_the_method_is_compared_with() -> None:
    methods = {row.method.partition(",")[0] for row in ROWS.values() if row.verified}
    assert {"mc-BEiT", "BEiT", "BEiT v2", "MAE", "CAE", "SimMIM", "MaskFeat", "DINO", "iBOT", "DINOv2"} <= methods
    assert (ROWS["mc-beit-vit-b.finetune"].value, ROWS["mc-beit-vit-l.finetune"].value) == (0.841, 0.856)


def test_read_published__keys_are_unique_and_sources_have_addresses() -> None:
    assert len(ROWS) == len(read_published().rows)
    assert all(row.url.startswith("https://") for row in ROWS.values())


def test_read_published__questions_that_get_a_verdict_differ_in_their_conditions() -> None:
    by_question = defaultdict(list)
    for row in ROWS.values():
        if row.verified and is_set(row):
            by_question[row.model, row.task, row.data, row.metric].append(row.conditions)
    assert all(found.count(one) == 1 for found in by_question.values() for one in found)


def test_read_published__no_merged_key_is_given_twice() -> None:
    """Which of two values counts is another thing in another version of PyYAML."""

    def look(node: yaml.Node) -> list[str]:
        if isinstance(node, yaml.SequenceNode):
            return [key for one in node.value for key in look(one)]
        if not isinstance(node, yaml.MappingNode):
            return []
        keys: list[str] = []
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                keys += [name for part in parts for name in look(part)]
            else:
                look(value)
                keys.append(key.value)
        assert len(keys) == len(set(keys)), (sorted(keys), str(node.start_mark))
        return keys

    assert look(yaml.compose(FILE.read_text(encoding="utf-8"))) == ["data", "parts", "models"]


def test_read_published__numbers_of_the_best_epoch_are_held_against_the_best_epoch() -> None:
    found = {(row.metric, row.selection) for row in ROWS.values() if row.task == "finetune"}
    assert found == {("top1", None), ("top1, best epoch", "best on the test images")}


def test_read_published__finetuning_gets_a_verdict_only_by_the_recipe_of_the_source() -> None:
    assert {row.key for row in ROWS.values() if row.task == "finetune" and is_set(row)} == {
        "mc-beit-vit-b.finetune", "beit-vit-b.finetune", "beit-vit-b-22k.finetune", "beit-vit-l-22k.finetune"
    }  # fmt: skip


def test_compare_published__finetuning_by_another_preprocessing_gets_no_verdict() -> None:
    row = ROWS["mc-beit-vit-b.finetune"]
    found = compared(measured(row, model__spec__preprocess__mean=[0.5, 0.5, 0.5]), row)
    assert found.mismatches == ("model.spec.preprocess.mean is [0.5, 0.5, 0.5], not [0.485, 0.456, 0.406]",)


def test_compare_published__linear_by_the_recipe_of_mae() -> None:
    row = ROWS["mae-vit-b.linear"]
    assert compared(measured(row, task__overrides=["linear.recipe=mae"]), row).verdict == "within noise"
    assert compared(measured(row, task__protocol__recipe="beit"), row).mismatches == (
        "task.protocol.recipe is beit, not mae",
    )


def test_read_published__conditions_name_places_of_results() -> None:
    """A typing mistake, or a setting that has since been renamed, would forbid every comparison."""
    for row in ROWS.values():
        facts = plain(row)
        for path in row.conditions:
            if row.task in TASKS or not path.startswith(PROTOCOL):
                at(facts, path)


def test_read_published__metrics_of_knn_are_those_that_it_measures() -> None:
    config = TASKS["knn"].config().model_dump()
    known = {f"top1, k={k}, T={temperature:g}" for k in config["k"] for temperature in config["temperature"]}
    assert {row.metric for row in ROWS.values() if row.task == "knn"} <= {*known, "top1, best setting"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("verified: true", "verified: false"), "needs a note that says why"),
        (("data: imagenet", "data: imagenot"), "data tells nothing of imagenot"),
        (("value: 0.9", "value: 90"), "less than 1"),
        (("b:\n", "a:\n"), "key given twice: a"),
    ],
)
def test_read_published__mistakes_in_the_file(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    model = """
    method: M
    backbone: ViT-B/16
    pretraining: {images: ImageNet-1K}
    conditions: {}
    numbers:
      linear: {task: linear, data: imagenet, metric: top1, value: 0.9, source: paper, url: "https://x", verified: true,
        tolerance: {value: 0.01, why: rounding}}
"""
    file = tmp_path / "published.yaml"
    images = "data: {imagenet: {title: ImageNet, splits: {val: 50000}}}\nparts: {}"
    text = f"{images}\nmodels:\n  a:{model}  b:{model}"
    file.write_text(text)
    validate(PublishedFile, read_values(file))
    file.write_text(text.replace(*change))
    with pytest.raises(ConfigError, match=message):
        validate(PublishedFile, read_values(file))


# --- verdicts ---


def test_compare_published__within_the_band_above_and_below() -> None:
    verdicts = [compared(measured(DINO, value)).verdict for value in (0.761, 0.7629, 0.7591, 0.7631, 0.7589)]
    assert verdicts == ["within noise", "within noise", "within noise", "above", "below"]


def test_compare_published__numbers() -> None:
    found = compared(measured(DINO, 0.75))
    assert (found.row, found.measured, found.mismatches) == (DINO, 0.75, ())
    assert found.delta == pytest.approx(-0.011)
    assert found.band == 0.002


def test_compare_published__every_number_that_may_get_a_verdict_can_get_one() -> None:
    rows = [row for row in ROWS.values() if row.verified and is_set(row)]
    assert len(rows) >= 17
    for row in rows:
        assert compared(measured(row), row).verdict == "within noise", row.key


def test_compare_published__what_is_not_verified_gets_no_verdict() -> None:
    rows = [row for row in ROWS.values() if not row.verified]
    assert rows
    for row in rows:
        found = compared(measured(row), row)
        assert found.verdict == "not comparable"
        assert found.mismatches[0] == f"the published number is not verified: {row.note}"


def test_compare_published__what_says_in_words_alone_how_to_set_the_task_gets_no_verdict() -> None:
    row = ROWS["mae-vit-b.box-25ep"]
    found = compared(measured(row), row)
    told = "Mask R-CNN with FPN, 1024 px, large scale jitter, 25 epochs"
    assert (found.verdict, found.mismatches) == (
        "not comparable",
        (f"published.yaml has no condition on the settings of the task: {told}",),
    )


def test_noise_band__is_the_hypotenuse_of_both_uncertainties() -> None:
    assert noise_band(0.003, Metric(value=0.8, interval=(0.796, 0.804))) == pytest.approx(0.005)
    assert noise_band(0.003, Metric(value=0.8, standard_error=0.004 / 1.959964)) == pytest.approx(0.005)
    assert noise_band(0.003, Metric(value=0.8)) == pytest.approx(0.003)


def test_noise_band__of_the_usual_case() -> None:
    """76.1 % of 50,000 images: half of the interval is 1.96 * sqrt(0.761 * 0.239 / 50000) = 0.374 %."""
    half = 1.959964 * math.sqrt(0.761 * 0.239 / 50000)
    metric = Metric(value=0.761, interval=(0.761 - half, 0.761 + half))
    assert noise_band(0.002, metric) == pytest.approx(0.00424, abs=5e-6)


# --- what forbids one ---


@pytest.mark.parametrize(
    ("changes", "mismatch"),
    [
        ({"task__preset": "short"}, "preset is short, not paper"),
        ({"task__limit": 1000}, "limit=1000 images per split"),
        ({"task__overrides": ["knn.k=5", "knn.seed=1"]}, "overrides: knn.k=5, knn.seed=1"),
        ({"task__protocol__scaling": "centre"}, "task.protocol.scaling is centre, not none"),
        ({"task__protocol": {}}, "task.protocol.scaling is unknown, not none"),
        ({"model__spec__pooling": "mean"}, "model.spec.pooling is mean, not cls"),
        ({"model__spec__num_layers": 24}, "model.spec.num_layers is 24, not 12"),
        ({"model__spec__whitening": "3" * 64}, f"model.spec.whitening is {'3' * 64}, not None"),
        (
            {"model__spec__preprocess__interpolation": "bilinear"},
            "model.spec.preprocess.interpolation is bilinear, not bicubic",
        ),
        ({"model__spec__precision": "int8"}, "the model is rounded to int8"),
        ({"data__splits__val__manifest__num_images": 9996}, "val has 9,996 images, ImageNet has 50,000"),
        ({"data__splits__train__manifest__num_classes": 998}, "train has 998 classes, ImageNet has 1,000"),
        ({"data__splits__val__used__num_unreadable": 12}, "12 images of val cannot be read"),
        ({"data__splits__train__manifest__num_lost": 1}, "1 image of train lost in damaged shards"),
    ],
)
def test_compare_published__mismatches(changes: dict[str, Any], mismatch: str) -> None:
    found = compared(measured(DINO, **changes))
    assert (found.verdict, found.mismatches) == ("not comparable", (mismatch,))


def test_compare_published__lists_all_mismatches() -> None:
    found = compared(measured(DINO, task__preset="smoke", task__limit=500, model__spec__pooling="mean"))
    assert found.mismatches == (
        "preset is smoke, not paper",
        "model.spec.pooling is mean, not cls",
        "limit=500 images per split",
    )


def test_compare_published__a_limit_explains_other_counts() -> None:
    counts = {"data__splits__val__manifest__num_images": 500, "data__splits__train__manifest__num_classes": 3}
    assert compared(measured(DINO, task__limit=500, **counts)).mismatches == ("limit=500 images per split",)


def test_compare_published__a_split_that_the_set_does_not_have() -> None:
    facts = measured(DINO).model_dump(mode="json")
    facts["data"]["splits"]["test"] = facts["data"]["splits"].pop("val")
    assert compared(Result.model_validate(facts)).mismatches == ("ImageNet has no test",)


def test_compare_published__images_without_labels_of_their_own_have_no_classes_to_count() -> None:
    assert compared(measured(DINO, data__splits__val__manifest__num_classes=0)).verdict == "within noise"


@pytest.mark.parametrize(
    ("found", "published", "mismatch"),
    [
        ("none", "none", None),
        ("last", None, None),
        ("best on the test images", "best on the test images", None),
        ("best on the test images", None, "selection: best on the test images"),
        ("best on the test images", "last", "selection: best on the test images, published: last"),
        ("last", "best on the test images", "selection: last, published: best on the test images"),
    ],
)
def test_compare_published__selection(found: str, published: str | None, mismatch: str | None) -> None:
    row = DINO.model_copy(update={"selection": published})
    facts = measured(DINO).model_dump(mode="json")
    facts["metrics"][DINO.metric]["selection"] = found
    assert compared(Result.model_validate(facts), row).mismatches == (() if mismatch is None else (mismatch,))


def test_compare_published__an_override_that_a_condition_asks_for_is_no_departure() -> None:
    row = ROWS["ibot-vit-b.knn"]
    asked = measured(row, task__overrides=["knn.k=[10,20,100,200]"])
    assert compared(asked, row).verdict == "within noise"
    other = measured(row, task__overrides=["knn.k=[5]"], task__protocol__k=[5])
    assert compared(other, row).mismatches == ("task.protocol.k is [5], not [10, 20, 100, 200]",)


# --- which numbers ---


def test_compare_published__takes_the_numbers_of_the_model_task_images_and_metric() -> None:
    assert [one.row.key for one in compare_published(measured(DINO))] == ["dino-vit-b.knn"]
    for changes in ({"model__reproduces": None}, {"model__reproduces": "mae-vit-b"}, {"data__name": "photos"}):
        assert compare_published(measured(DINO, **changes)) == []
    facts = measured(DINO).model_dump(mode="json")
    facts["metrics"] = {"top1, k=10, T=0.07": facts["metrics"][DINO.metric]}
    assert compare_published(Result.model_validate(facts)) == []


def test_check_reproduces__knows_every_model() -> None:
    for model in read_published().models:
        check_reproduces(model)


def test_check_reproduces__suggests_and_lists() -> None:
    with pytest.raises(ConfigError) as error:
        check_reproduces("mcbeit-vit-b")
    first, second = str(error.value).split("\n")
    assert first == ("reproduces=mcbeit-vit-b: there are no published numbers of it; did you mean 'mc-beit-vit-b'?")
    assert second.startswith("models: mc-beit-vit-b, mc-beit-vit-l, beit-vit-b, ")


# --- for people ---


def test_cells() -> None:
    assert compared(measured(DINO, 0.76)).cells() == [
        "dino-vit-b, knn, top1, k=20, T=0.07 (DINO, README)", "76.1", "76.00", "-0.10", "± 0.20", "within noise"
    ]  # fmt: skip
    assert compared(measured(DINO, task__preset="short", task__limit=100)).cells()[-1] == (
        "not comparable; preset is short, not paper; limit=100 images per split"
    )


def test_published_table() -> None:
    header, *rows = published_table()
    assert header == ["number", "images", "metric", "published, %", "verified", "source"]
    told = ["top1, best epoch", "84.1", "yes", "mc-BEiT, README, model zoo"]
    assert ["mc-beit-vit-b.finetune", "imagenet", *told] in rows
    assert Counter(row[4] for row in rows) == Counter("yes" if row.verified else "no" for row in ROWS.values())


def test_percent() -> None:
    assert [percent(value) for value in (0.841, 0.8357, 0.44, 0.0)] == ["84.1", "83.57", "44.0", "0.0"]
