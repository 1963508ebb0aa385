"""`mcbeit report MODEL`: measure a pretraining run, print the table, write RUN/report.json and RUN/report.html.

What was measured is kept: a second report of the same checkpoint prints it again. Weights without a run have a table
only, on images that are named.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mcbeit.atomic import write_json
from mcbeit.bench.run_report import baselines
from mcbeit.bench.run_report.baselines import Comparison, Features
from mcbeit.bench.run_report.page import render
from mcbeit.bench.run_report.trained import fingerprint, load_trained
from mcbeit.config import override, validate
from mcbeit.device import Precision, choose_device, choose_precision
from mcbeit.errors import ConfigError
from mcbeit.preprocess import Preprocess
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.probe import RECALL_COUNTS, OnlineProbe
from mcbeit.progress import Display
from mcbeit.vit import VisionTransformer
from mcbeit.weight_files import TIMM
from mcbeit.weight_fitting import load_backbone
from mcbeit.weights import read_weights

NO_LABELS = "no table: the images have no labels; with eval.gallery and eval.queries a run names some that have"


@dataclass(frozen=True)
class Report:
    """What was measured of a run, and the page about it. `comparison` is None if there are no labels."""

    comparison: Comparison | None
    page: Path | None  # weights without a run have none
    remarks: tuple[str, ...] = ()

    @property
    def table(self) -> list[list[str]]:
        """The cells of the comparison, the header first; empty without labels."""
        return [] if self.comparison is None else table(self.comparison)

    @property
    def notes(self) -> list[str]:
        """What has to be read with the table, or why there is none."""
        return [*([NO_LABELS] if self.comparison is None else table_notes(self.comparison)), *self.remarks]


def report_model(source: str, assignments: Sequence[str] = (), *, fresh: bool = False) -> Report:
    """`report` of a run folder, `report_weights` of everything else that can be a model."""
    path = Path(source).expanduser()
    is_file = path.is_file() or (path.suffix != "" and not path.is_dir())
    is_checkpoint = path.is_dir() and not (path / "config.yaml").is_file()
    if source.startswith(TIMM) or is_file or is_checkpoint:
        return report_weights(source, assignments)
    if assignments:
        raise ConfigError(f"the run '{path}' is judged on its own images; leave {' '.join(assignments)} out")
    return report(path, fresh=fresh)


def report(path: Path, *, fresh: bool = False) -> Report:
    """Measure the last checkpoint of a run, or with `fresh=False` read what was measured of it before.

    Raises RunError if the folder is no pretraining run or has no checkpoint, DataError if its images are not there.
    """
    found = fingerprint(path)
    if not fresh and (stored := _stored(path, found)) is not None:
        return stored
    run = load_trained(path)
    probe = baselines.open_probe(run.config)
    config, size = run.config, run.config.preprocess.image_size
    random = baselines.random_backbone(config.model, size, config.seed, config.data.channels).to(run.device)
    features: dict[str, Features] = {}
    comparison = None
    with Display("report", 1 if probe is None else 5) as display:
        if probe is not None:
            display.advance(f"{len(probe.gallery.labels) + len(probe.queries.labels)} labelled images decoded")
            features |= _embed(run.config, probe, random, run.backbone, run.precision, display)
            comparison = baselines.compare(run.config, probe, features, step=run.step)
            display.advance("probed")
        page = path / "report.html"
        result = Report(comparison, page)
        html = render(run, random, table=result.table, notes=result.notes, probe=probe, features=features)
        _write(page, html)
        values = {"fingerprint": found, "comparison": None if comparison is None else asdict(comparison)}
        write_json(path / "report.json", values)
        display.advance("page written")
    return result


def report_weights(source: str, assignments: Sequence[str] = ()) -> Report:
    """Measure weights of any kind on labelled images that `key=value` assignments name; see `ProbeConfig`.

    Raises WeightsError if there are no such weights, ConfigError or DataError if there are no such images.
    """
    weights = read_weights(source)
    preprocess = weights.preprocess or Preprocess(image_size=weights.image_size)
    known = {"preprocess": preprocess.model_dump(mode="json"), "data": {"channels": weights.channels}}
    config = validate(baselines.ProbeConfig, override(known, assignments), origin=source)
    if config.data.channels != weights.channels:
        raise ConfigError(f"data.channels is {config.data.channels}, but '{source}' takes {weights.channels}")
    probe = baselines.open_probe(config)
    if probe is None:
        return Report(None, None)
    device = choose_device()
    precision = choose_precision("auto", device)
    loaded = load_backbone(source, image_size=config.preprocess.image_size)
    random = baselines.random_backbone(loaded.config, loaded.image_size, config.seed, loaded.channels).to(device)
    with Display("report", 4) as display:
        display.advance(f"{len(probe.gallery.labels) + len(probe.queries.labels)} labelled images decoded")
        features = _embed(config, probe, random, loaded.model.to(device), precision, display)
        comparison = baselines.compare(config, probe, features, step=None)
        display.advance("probed")
    remarks = [f"weights: {loaded.account.summary()}"]
    if weights.preprocess is None:
        used = config.preprocess
        remarks.append(f"the file does not tell its normalisation; used: mean {list(used.mean)}, std {list(used.std)}")
    return Report(comparison, None, tuple(remarks))


def _embed(
    config: PretrainConfig | baselines.ProbeConfig,
    probe: OnlineProbe,
    random: VisionTransformer,
    pretrained: VisionTransformer,
    precision: Precision,
    display: Display,
) -> dict[str, Features]:
    features = {"pixels": baselines.pixel_features(probe)}
    for name, backbone in (("random", random), ("pretrained", pretrained)):
        features[name] = baselines.backbone_features(backbone, probe, config.preprocess, precision)
        display.advance(f"embedded by the {name} backbone")
    return features


def _stored(path: Path, found: dict[str, str]) -> Report | None:
    """The last report, if it is whole and about the same checkpoint."""
    page = path / "report.html"
    try:
        values = json.loads((path / "report.json").read_text(encoding="utf-8"))
        if values["fingerprint"] != found or not page.is_file():
            return None
        return Report(None if values["comparison"] is None else Comparison.from_json(values["comparison"]), page)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def table(comparison: Comparison) -> list[list[str]]:
    """The cells of the comparison, the header first."""
    names = {
        "pixels": "raw pixels",
        "random": "random backbone",
        "pretrained": "pretrained" if comparison.step is None else f"pretrained, step {comparison.step}",
    }
    recalls = [f"R@{count}" for count in RECALL_COUNTS]
    header = ["features", "dim", "k-NN top-1", "- random", "linear top-1", "- random", *recalls]
    rows = [header]
    for row in comparison.rows:
        cells = [names[row.name], str(row.dim)]
        for metric, accuracy in (("knn", row.knn), ("linear", row.linear)):
            gain = "" if row.name == "random" else f"{comparison.gain(metric, row.name):+.3f}"
            cells += [f"{accuracy:.3f} ± {comparison.standard_error(accuracy):.3f}", gain]
        cells += [f"{value:.3f}" for value in row.recall]
        rows.append(cells)
    return rows


def table_notes(comparison: Comparison) -> list[str]:
    """What has to be read with the table: layer, probes, images, seed, verdict."""
    margins = baselines.MARGINS
    gains = {metric: comparison.gain(metric) for metric in margins}
    skipped = f", {comparison.num_skipped} unreadable images left out" if comparison.num_skipped else ""
    return [
        f"features: {baselines.LAYER}, standardised; k-NN: k = 20, cosine, temperature 0.07; linear probe: by L-BFGS",
        f"gallery and training: {comparison.num_gallery:,} images of {comparison.gallery}; queries: "
        f"{comparison.num_queries:,} images of {comparison.queries}; {comparison.num_classes} classes{skipped}",
        "R@k: share of queries with an image of their class among the k nearest by cosine",
        f"±: binomial standard error over the queries. Seed {comparison.seed}: one seed is one seed, another run may "
        "differ by more",
        f"verdict: {'met' if comparison.is_met else 'NOT met'}: over the random backbone k-NN {gains['knn']:+.3f} "
        f"(demanded {margins['knn']:+.2f}), linear {gains['linear']:+.3f} (demanded {margins['linear']:+.2f})",
    ]
