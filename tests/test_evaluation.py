"""Test accuracy: each image once, those that cannot be read in no mean; which epoch was the last, which the best."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import write_shapes

from mcbeit.classifier import Classifier
from mcbeit.device import PRECISIONS
from mcbeit.epochs import Epoch, keep_predictions, read_predictions, take_note
from mcbeit.errors import DataError
from mcbeit.evaluation import Judgement, judge
from mcbeit.finetune_data import Judged
from mcbeit.group import ALONE
from mcbeit.preprocess import Preprocess
from mcbeit.sources import open_source
from mcbeit.vit import ModelConfig, VisionTransformer

PREPROCESS = Preprocess(image_size=8)


def judged(folder: Path) -> Judged:
    source = open_source(str(folder), "imagefolder")
    assert source.labels is not None
    return Judged(source, source.labels)


def classifier(num_classes: int) -> Classifier:
    torch.manual_seed(0)
    config = ModelConfig(dim=16, depth=1, num_heads=2, patch_size=4, init="xavier", final_norm="pooled")
    return Classifier(VisionTransformer(config, image_size=8), num_classes)


def ask(folder: Path, num_classes: int = 7) -> Judgement:
    model, precision = classifier(num_classes), PRECISIONS["fp32"]
    return judge(model, judged(folder), PREPROCESS, precision, group=ALONE, num_workers=0, batch_size=5)


def test_judge__agrees_with_the_scores_taken_one_by_one(shapes: Path) -> None:
    model, images = classifier(7).eval(), judged(shapes)
    found = ask(shapes)
    pixels = np.stack([PREPROCESS.pixels(images.source.read(i)) for i in range(24)])
    inputs = torch.from_numpy(PREPROCESS.normalise(pixels)).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = model(inputs)
    labels = torch.from_numpy(images.labels)
    assert found.predicted.tolist() == scores.argmax(dim=1).tolist()
    assert found.top1 == float((scores.argmax(dim=1) == labels).double().mean())
    order = scores.argsort(dim=1, descending=True)[:, :5]
    assert found.top5 == pytest.approx(float((order == labels[:, None]).any(dim=1).double().mean()))
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(scores, labels)), rel=1e-5)
    assert found.num_unreadable == 0


def test_judge__no_top5_of_five_classes(shapes: Path) -> None:
    assert ask(shapes, 5).top5 is None
    assert ask(shapes, 6).top5 is not None


def test_judge__leaves_the_model_and_the_random_numbers_as_they_were(shapes: Path) -> None:
    model = classifier(2).train()
    before = torch.get_rng_state()
    judge(model, judged(shapes), PREPROCESS, PRECISIONS["fp32"], group=ALONE, num_workers=0, batch_size=24)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_judge__unreadable_images_count_for_nothing(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path, count=6)
    whole = ask(folder)
    (folder / "disc" / "002.png").write_bytes(b"no image")
    found = ask(folder)
    assert found.num_unreadable == 1
    assert found.predicted.tolist() == [whole.predicted[0], -1, *whole.predicted[2:]]
    right = (found.predicted == judged(folder).labels)[found.predicted >= 0]
    assert found.top1 == right.mean()
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 6 images to judge by, such as '.*000\.png', can be read"):
        ask(folder)


# epochs


def epoch(number: float, top1: float, *, held_out: float | None = None, top5: float | None = None) -> Epoch:
    def judgement(value: float) -> Judgement:
        return Judgement(np.array([int(100 * value), -1]), value, top5, 0.5)

    return Epoch(number, judgement(top1), None if held_out is None else judgement(held_out))


def test_take_note__keeps_last_and_best_apart() -> None:
    numbers: dict[str, Any] = {}
    assert [take_note(numbers, epoch(i, top1)) for i, top1 in enumerate([0.5, 0.75, 0.75, 0.6])] == [
        True,
        True,
        False,
        False,
    ]
    assert numbers["judged"] == {
        "last": {"epoch": 3, "top1": 0.6, "test_loss": 0.5, "selection": "last"},
        "best": {"epoch": 1, "top1": 0.75, "test_loss": 0.5, "selection": "best on the test images"},
    }


def test_take_note__chooses_by_held_out_images_if_there_are_some() -> None:
    numbers: dict[str, Any] = {}
    assert take_note(numbers, epoch(1, 0.5, held_out=0.9))
    assert not take_note(numbers, epoch(2, 0.9, held_out=0.8))
    best = numbers["judged"]["best"]
    assert (best["epoch"], best["top1"], best["held_out_top1"]) == (1, 0.5, 0.9)
    assert best["selection"] == "held-out images"


def test_epoch__tells_a_person_everything() -> None:
    told = epoch(2.0, 0.75, held_out=0.5, top5=0.9).describe()
    assert told == (
        "epoch 2: top-1 0.7500, top-5 0.9000, loss 0.5000 on 2 test images, 1 unreadable ones left out, "
        "top-1 0.5000 on 2 held-out ones"
    )


def test_keep_predictions__of_the_last_and_of_the_best(tmp_path: Path) -> None:
    keep_predictions(tmp_path, epoch(1, 0.5), is_best=True)
    keep_predictions(tmp_path, epoch(2, 0.4), is_best=False)
    assert read_predictions(tmp_path, "last").tolist() == [40, -1]
    assert read_predictions(tmp_path, "best").tolist() == [50, -1]
