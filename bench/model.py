"""A model to be measured: an encoder, or weights, with the cache of its vectors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mcbeit.bench.data import NOTHING, BenchData
from mcbeit.bench.features import FeatureCache, Features, SplitTask
from mcbeit.bench.pixels import PIXELS
from mcbeit.bench.result import DetectorSpec, ModelFacts, ModelKind
from mcbeit.bench.sweep import Column, SweepEncoder
from mcbeit.bench.treatment import Treatment
from mcbeit.bodies import Body
from mcbeit.body_loading import load_body, short_name
from mcbeit.detection.loading import LoadedDetector, holds_detector, load_detector
from mcbeit.embed_task import StreamConfig
from mcbeit.encoder import ADDRESS, FAKE, TIMM, PixelEncoder
from mcbeit.fingerprint import fingerprint
from mcbeit.model_folder import is_model_folder

KIND_NAMES: dict[ModelKind, str] = {
    "torch": "weights in torch",
    "onnx": "an exported graph",
    "served": "a service",
    "fake": "the fake encoder",
    "pixels": "raw pixels",
}


def kind_of(source: str) -> ModelKind:
    """What computes a model, by its name alone."""
    if source.startswith(ADDRESS):
        return "served"
    if source == FAKE:
        return "fake"
    if source == PIXELS:
        return "pixels"
    is_folder = not source.startswith(TIMM) and is_model_folder(Path(source).expanduser())
    return "onnx" if is_folder else "torch"


@dataclass
class BenchModel:
    """One MODEL of a command, opened when it is first asked for."""

    source: str
    config: StreamConfig
    cache: FeatureCache
    reproduces: str | None = None
    out: Path = Path()  # of the command: what a task makes beside its result lies there
    _swept: SweepEncoder | None = None

    @property
    def kind(self) -> ModelKind:
        """What computes it."""
        return kind_of(self.source)

    @cached_property
    def encoder(self) -> PixelEncoder:
        """Its encoder, whose vectors are not scaled. Raises EncoderError, WeightsError, ServiceError or ConfigError."""
        return self._task(NOTHING, "").open_encoder()

    @cached_property
    def detector(self) -> LoadedDetector | None:
        """It as a trained detector, which is no encoder; None if it is none. Raises WeightsError."""
        return load_detector(self.source) if self.kind == "torch" and holds_detector(self.source) else None

    @cached_property
    def body(self) -> Body:
        """The network alone, without what is made of its tokens. Raises WeightsError or EncoderError."""
        task = self._task(NOTHING, "")
        return load_body(self.source, task.encoder_config).body

    def sweep_encoder(self, columns: Sequence[Column]) -> SweepEncoder:
        """The network with the vectors of several layers and poolings, opened once."""
        if self._swept is None or self._swept.columns != tuple(columns):
            found = self._task(NOTHING, "", columns).open_encoder()
            assert isinstance(found, SweepEncoder)
            self._swept = found
        return self._swept

    def features(
        self, data: BenchData, split: str, columns: Sequence[Column] = (), treatment: Treatment | None = None
    ) -> Features:
        """The vectors of a split: its embeddings, or those of several layers and poolings one after the other."""
        task = replace(self._task(data, split, columns), treatment=treatment)
        return self.cache.get(task, self.sweep_encoder(columns) if columns else self.encoder)

    def facts(self) -> ModelFacts:
        """For results."""
        told = {name: getattr(self.config, name) for name in ("batch_size", "precision", "provider", "threads")}
        detector = self.detector
        return ModelFacts(
            source=self.source,
            kind=self.kind,
            spec=self.encoder.spec if detector is None else _detector_spec(self.source, detector),
            computed={name: value for name, value in told.items() if value is not None},
            notes=self.encoder.notes if detector is None else (f"weights: {detector.account.summary()}",),
            reproduces=self.reproduces,
        )

    def _task(self, data: BenchData, split: str, columns: Sequence[Column] = ()) -> SplitTask:
        values: dict[str, Any] = {"data": self.config.data.model_copy(update={"source": f"{data.place} ({split})"})}
        if self.kind != PIXELS:
            values["normalize"] = False
        given = self.config.model_fields_set & set(StreamConfig.model_fields)
        config = StreamConfig.model_validate({**{name: getattr(self.config, name) for name in given}, **values})
        return SplitTask(self.source, config, data=data, split=split, columns=tuple(columns))


def _detector_spec(source: str, detector: LoadedDetector) -> DetectorSpec:
    shape, preprocess = detector.shape, detector.model.preprocess
    told = {
        "model": shape.model.model_dump(mode="json"),
        "window": shape.window,
        "detector": shape.detector.model_dump(mode="json"),
        "preprocess": preprocess.describe(),
    }
    return DetectorSpec(
        name=short_name(source),
        fingerprint=fingerprint(detector.model.state_dict(), told),
        dim=shape.model.shape[0],
        num_classes=shape.num_classes,
        preprocess=preprocess.model_copy(update={"image_size": detector.image_size}),
    )
