"""`report`: a run is measured, the numbers are kept, the page is whole and needs nothing from elsewhere."""

import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from official import official_state
from tiny import pretrain_config, write_shapes

from mcbeit.bench.run_report.baselines import Comparison, Row, open_probe, pixel_features, random_backbone
from mcbeit.bench.run_report.report import Report, report, report_model
from mcbeit.bench.run_report.trained import load_trained
from mcbeit.cli.tables import plain_table
from mcbeit.device import PRECISIONS
from mcbeit.errors import ConfigError, DataError, RunError, WeightsError
from mcbeit.pretrain import pretrain
from mcbeit.probe import knn_accuracy, linear_accuracy, mean_pooled, recall_at, standardise
from mcbeit.weight_conversion import convert_weights

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a page holds; fails on an element that is not closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.ids: Counter[str] = Counter()
        self._open: list[str] = []
        self._texts: list[str] = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name in ("href", "src", "srcset", "data", "action"):
                self.links.append(value or "")
            if name == "id":
                self.ids[value or ""] += 1
        if tag == "img":
            assert dict(attrs)["alt"]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())


def test_report__has_the_numbers_of_the_probe(reported: Path) -> None:
    run, found = reported, report(reported)
    trained = load_trained(run)
    probe = open_probe(trained.config)
    assert probe is not None
    sets = {"pixels": tuple(pixel_features(probe))}
    config = trained.config
    random = random_backbone(config.model, config.preprocess.image_size, config.seed)
    for name, backbone in (("random", random), ("pretrained", trained.backbone)):
        pooled = (
            mean_pooled(backbone, s.pixels, trained.config.preprocess, PRECISIONS["fp32"])
            for s in (probe.gallery, probe.queries)
        )
        sets[name] = standardise(*pooled)
    assert found.comparison is not None
    assert [row.name for row in found.comparison.rows] == ["pixels", "random", "pretrained"]
    for row in found.comparison.rows:
        gallery, queries = sets[row.name]
        measured = (gallery, probe.gallery.labels, queries, probe.queries.labels)
        assert row == Row(
            row.name, gallery.shape[1], knn_accuracy(*measured), linear_accuracy(*measured), tuple(recall_at(*measured))
        )
    assert (
        found.comparison.row("pretrained").knn
        == [
            json.loads(line)["knn_top1"]
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if "knn_top1" in line
        ][-1]
    )


def test_report__page_is_one_file(reported: Path) -> None:
    run, found = reported, report(reported)
    assert found.page == run / "report.html"
    page = Page(found.page)
    assert "http" not in page.source
    assert "@import" not in page.source
    assert page.tags["script"] == page.tags["link"] == 0
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for link in page.links)
    assert set(page.ids.values()) == {1}
    assert len(page.source) < 3e6
    assert not [path for path in run.iterdir() if path.name.endswith(".partial")]


def test_report__page_shows_everything(reported: Path) -> None:
    run, found = reported, report(reported)
    page = Page(found.page)
    titles = ("Accuracy", "Training", "Tokenizer", "Targets and predictions", "Similar patches", "Nearest", "Config")
    assert all(title in page.text for title in titles)
    assert all(cell in page.text for row in found.table for cell in row if not cell.startswith("- "))
    assert all(note in page.text for note in found.notes)
    charts = 9  # loss, above entropy, accuracy, perplexity, gradient, lr, speed, kNN of two epochs, code use
    assert page.source.count('class="chart"') == charts
    assert page.text.count("Effective number of choices") == 4
    assert page.text.count("pretrained backbone, lowest") == page.text.count("random backbone, lowest") == 4
    assert page.text.count("✓") + page.text.count("✗") == 2 * 3 * 6 + 2
    assert "40 in " in page.text
    assert "0 unreadable" in page.text
    assert "seed: 0" in page.text
    assert (run / "config.yaml").read_text().split("\n")[0] in page.source


def test_report__table_and_notes() -> None:
    rows = [
        Row("pixels", 784, 0.8258, 0.81, (0.7, 0.8, 0.9)),
        Row("random", 128, 0.613, 0.734, (0.5, 0.6, 0.7)),
        Row("pretrained", 128, 0.7726, 0.8108, (0.75, 0.85, 1.0)),
    ]
    met = Report(Comparison(rows, "train", "val", 10000, 5000, 3, 10, 0, 468), Path("report.html"))
    assert plain_table(met.table).splitlines() == [
        "features              dim     k-NN top-1  - random   linear top-1  - random    R@1    R@5   R@10",
        "raw pixels            784  0.826 ± 0.005    +0.213  0.810 ± 0.006    +0.076  0.700  0.800  0.900",
        "random backbone       128  0.613 ± 0.007            0.734 ± 0.006            0.500  0.600  0.700",
        "pretrained, step 468  128  0.773 ± 0.006    +0.160  0.811 ± 0.006    +0.077  0.750  0.850  1.000",
    ]
    notes = "\n".join(met.notes)
    assert "mean of the patch tokens after the final norm" in notes
    assert "10,000 images of train; queries: 5,000 images of val; 10 classes, 3 unreadable images left out" in notes
    assert "Seed 0: one seed is one seed" in notes
    assert (
        "verdict: met: over the random backbone k-NN +0.160 (demanded +0.08), linear +0.077 (demanded +0.05)" in notes
    )
    rows[2] = Row("pretrained", 128, 0.7726, 0.734, (0.75, 0.85, 1.0))
    unmet = Report(Comparison(rows, "train", "val", 10000, 5000, 0, 10, 0, 468), Path("report.html"))
    assert "verdict: NOT met" in unmet.notes[-1]
    assert "unreadable" not in "\n".join(unmet.notes)


def falsify(run: Path) -> None:
    """Change a number of the report, so that one can tell whether it was read or measured."""
    values = json.loads((run / "report.json").read_text())
    values["comparison"]["rows"][2]["knn"] = 0.125
    (run / "report.json").write_text(json.dumps(values))


def test_report__a_second_time_reads_what_was_measured(run: Path) -> None:
    first, page = report(run), (run / "report.html").read_text()
    falsify(run)
    (run / "report.html").write_text("an old page")
    second = report(run)
    assert second.comparison is not None
    assert second.comparison.row("pretrained").knn == 0.125
    assert (run / "report.html").read_text() == "an old page"
    assert report(run, fresh=True) == report(run) == first
    assert (run / "report.html").read_text() == page


@pytest.mark.parametrize("change", ["page", "numbers", "measurements"])
def test_report__measures_again_when_something_changed(run: Path, change: str) -> None:
    first = report(run)
    falsify(run)
    if change == "page":
        (run / "report.html").unlink()
    elif change == "numbers":
        (run / "report.json").write_text("{")
    else:
        (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace('"loss": ', '"loss": 1'))
    assert report(run) == first
    assert (run / "report.html").exists()


def test_report__without_labels_has_no_table(unlabelled: Path) -> None:
    found = report(unlabelled)
    assert (found.comparison, found.table) == (None, [])
    (note,) = found.notes
    assert note.startswith("no table: the images have no labels; ")
    page = Page(found.page)
    assert note in page.text
    assert page.tags["table"] == 4
    assert "Nearest neighbours" not in page.text
    assert "Above images of the source" in page.text


def test_report__of_an_unfinished_run(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    (run / "summary.json").unlink()
    found = report(run)
    assert found.comparison is not None
    assert found.comparison.step == 5
    text = Page(found.page).text
    assert "pretrained, step 5" in text
    assert "5 of 10 steps" in text
    assert "unfinished" in text


def test_report__with_a_tokenizer_without_decoder(shapes: Path, tmp_path: Path) -> None:
    """A VQGAN has codes, but nothing turns them back into pixels."""
    from safetensors.torch import save_file

    from mcbeit.tokenizer_choice import TokenizerChoice
    from mcbeit.vqgan import GumbelVQGAN

    size = {"vocab_size": 16, "embed_dim": 32, "dim": 32, "multipliers": (1, 1, 1), "num_blocks": 1}
    choice = TokenizerChoice.model_validate(
        {"kind": "vqgan", "path": str(tmp_path / "vqgan.safetensors"), "vqgan": size}
    )
    save_file(GumbelVQGAN(choice.vqgan).state_dict(), tmp_path / "vqgan.safetensors")
    config = pretrain_config(shapes / "train", "none", tmp_path / "run")
    pretrain(config.model_copy(update={"tokenizer": choice}))
    page = Page(report(tmp_path / "run").page)
    assert "codes are used" in page.text
    assert page.text.count("Effective number of choices") == 4
    assert "decoded" not in page.text


def test_report__without_its_tokenizer(run: Path, shapes: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(shapes / "tokenizer"), str(shapes / "gone")))
    page = Page(report(run).page)
    assert "There are no figures of codes: there is no trained tokenizer at" in page.text
    assert "Effective number" not in page.text
    assert "Similar patches" in page.text


def test_report__counts_unreadable_images(shapes: Path, run: Path, tmp_path: Path) -> None:
    source, queries = (shutil.copytree(shapes / name, tmp_path / name) for name in ("train", "val"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        text.replace(str(shapes / "train"), str(source)).replace(str(shapes / "val"), str(queries))
    )
    for folder in (source, queries):
        (folder / "disc" / "bad.png").write_bytes(b"no image")
    (run / "corrupt.txt").write_text("a.png\tthe file is empty\nb.png\tthe file is empty\n")
    found = report(run)
    assert found.comparison is not None
    assert found.comparison.num_skipped == 2
    assert "2 unreadable images left out" in "\n".join(found.notes)
    assert "41 in" in Page(found.page).text
    assert "2 unreadable" in Page(found.page).text


def test_report__of_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_report__when_the_images_are_gone(run: Path, shapes: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(shapes / "train"), str(shapes / "gone")))
    with pytest.raises(DataError, match=r"no image source at '.*gone'"):
        report(run)


def test_report__escapes_names(tmp_path: Path, shapes: Path) -> None:
    """Nothing that a folder is called can become part of the page."""
    source = write_shapes(tmp_path / "<script>&amp;" / "train")
    (source / "disc").rename(source / "<b onload='x'>")
    run = tmp_path / "<i>run"
    data = {"source": str(source), "kind": "imagefolder", "num_workers": 0}
    pretrain(pretrain_config(source, shapes / "tokenizer", run, data=data))
    page = Page(report(run).page)
    assert page.tags["script"] == 0
    assert page.tags["i"] == 2 * 3 * 6  # the marks of the neighbours
    assert "<b onload='x'>" in page.text
    assert "<i>run" in page.text


# weights without a run


def images(shapes: Path) -> list[str]:
    return [f"data.source={shapes / 'train'}", "data.kind=imagefolder", f"eval.queries={shapes / 'val'}"]


def test_report_model__of_weights_has_the_numbers_of_their_run(
    run: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_weights(run, tmp_path / "w.safetensors", "mcbeit")
    found, own = report_model(str(tmp_path / "w.safetensors"), images(shapes)), report_model(str(run))
    assert found.comparison is not None
    assert own.comparison is not None
    assert found.comparison.row("pretrained") == own.comparison.row("pretrained")
    assert found.comparison.row("pixels") == own.comparison.row("pixels")
    assert found.page is None
    assert [row[0] for row in found.table[1:]] == ["raw pixels", "random backbone", "pretrained"]
    assert found.notes[-1].startswith("weights: ")
    step = next((run / "checkpoints").glob("step-*"))
    assert report_model(str(step), images(shapes)).page is None


def test_report_model__of_an_official_checkpoint_tells_what_it_assumes(shapes: Path, tmp_path: Path) -> None:
    torch.save({"module": official_state("finetune")}, tmp_path / "w.pt")
    found = report_model(str(tmp_path / "w.pt"), images(shapes))
    assert found.comparison is not None
    assert found.comparison.row("pretrained").dim == 32
    assert found.notes[-1].startswith("the file does not tell its normalisation; used: mean [0.485, 0.456, 0.406]")


def test_report_model__without_labels_or_images(shapes: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "w.pth")
    torch.save(official_state("pretrain"), file)
    assert report_model(file, [f"data.source={shapes / 'train'}"]).comparison is None
    with pytest.raises(DataError, match=r"data\.source is not set"):
        report_model(file)
    with pytest.raises(ConfigError, match="unknown key 'model'"):
        report_model(file, [*images(shapes), "model.size=tiny"])
    with pytest.raises(WeightsError, match="there are no weights at"):
        report_model(str(tmp_path / "typo.pth"), images(shapes))


def test_report_model__a_run_may_have_a_dot_in_its_name(run: Path) -> None:
    dotted = run.rename(run.with_name("demo.v2"))
    assert report_model(str(dotted)).page == dotted / "report.html"


def test_report_model__a_run_keeps_its_images(run: Path, shapes: Path) -> None:
    with pytest.raises(ConfigError, match="is judged on its own images; leave data"):
        report_model(str(run), images(shapes))
