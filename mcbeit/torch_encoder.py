"""The encoder that torch computes: of training, of other people's weights, and the yardstick of every export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcbeit.bodies import BeitBody
from mcbeit.body_loading import LoadedBody, load_body
from mcbeit.device import PrecisionName, choose_device, choose_precision, thread_limit
from mcbeit.embedding_model import EmbeddingModel
from mcbeit.encoder import EncoderConfig, EncoderSpec, PixelEncoder, Pixels, derived_fingerprint
from mcbeit.errors import EncoderError
from mcbeit.fingerprint import fingerprint
from mcbeit.whitening import load_whitening


class TorchEncoder(PixelEncoder):
    """A model in torch, on `device`; products are computed in `precision` (fp32, bf16, fp16, auto)."""

    def __init__(
        self,
        model: EmbeddingModel,
        spec: EncoderSpec,
        *,
        device: torch.device | str | None = None,
        precision: PrecisionName = "fp32",
        threads: int | None = None,
    ) -> None:
        self.device = choose_device() if device is None else torch.device(device)
        self.model, self.spec = model.eval().to(self.device), spec
        self.threads = threads
        self._precision = choose_precision(precision, self.device)

    @classmethod
    def load(
        cls,
        source: str | Path,
        config: EncoderConfig | None = None,
        *,
        extra_layers: Sequence[int] = (),
        **runtime: Any,
    ) -> "TorchEncoder":
        """Open a model; see `load_body`. `runtime` is what the class takes.

        Raises EncoderError for tokens or a pooling that it does not have.
        """
        config = config or EncoderConfig()
        return cls.of(load_body(source, config), config, extra_layers=extra_layers, **runtime)

    @classmethod
    def of(
        cls, loaded: LoadedBody, config: EncoderConfig, *, extra_layers: Sequence[int] = (), **runtime: Any
    ) -> "TorchEncoder":
        """The encoder of a loaded backbone, whose module gives the patch tokens of further layers too."""
        model, spec = build_model(loaded, config, extra_layers)
        found = cls(model, spec, **runtime)
        found.notes = loaded.notes
        return found

    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        """See `PixelEncoder`."""
        with torch.inference_mode(), self._precision.autocast(self.device), thread_limit(self.threads):
            batch = torch.from_numpy(pixels).to(self.device)
            found = self.model(batch)[1] if patches else self.model.embed(batch)
        return found.float().cpu().numpy()


def build_model(
    loaded: LoadedBody, config: EncoderConfig, layers: Sequence[int] = ()
) -> tuple[EmbeddingModel, EncoderSpec]:
    """The module from pixels to vectors, and what its vectors are."""
    body = loaded.body
    preprocess = loaded.preprocess.model_copy(update={"jpeg_draft": config.jpeg_draft})
    layer = config.layer or body.num_layers
    is_end = layer == body.num_layers and config.final_norm
    pooling = config.pooling or (body.default_pooling if is_end or body.default_pooling != "head" else "mean")
    if too_deep := [number for number in (layer, *layers) if not 1 <= number <= body.num_layers]:
        raise EncoderError(f"layer {too_deep[0]} is not there: {loaded.name} has layers 1 to {body.num_layers}")
    if pooling == "head" and (isinstance(body, BeitBody) or layer != body.num_layers or not config.final_norm):
        raise EncoderError(
            "pooling=head is what a model of timm makes of its last layer with its norm; take mean, cls or gem"
        )
    if "cls" in pooling and not body.has_cls:
        raise EncoderError(f"pooling={pooling} needs a cls token, which {loaded.name} does not have; take mean or gem")
    told = {
        "model": str(loaded.timm),  # tensors do not tell everything, as the number of heads
        "preprocess": preprocess.describe(),
        "pooling": pooling,
        "layer": layer,
        "final_norm": config.final_norm,
    }
    found = fingerprint(body.state_dict(), told)
    whitening = None if config.whitening is None else load_whitening(config.whitening, fingerprint=found)
    model = EmbeddingModel(
        body,
        preprocess,
        pooling=pooling,
        layer=layer,
        final_norm=config.final_norm,
        whitening=whitening,
        extra_layers=layers,
    ).eval()
    size = preprocess.image_size
    with torch.inference_mode():
        blank = torch.zeros(1, size, size, preprocess.channels, dtype=torch.uint8)
        vectors, features = model(blank if preprocess.channels == 3 else blank.float())[:2]
    spec = EncoderSpec(
        name=loaded.name,
        fingerprint=found if whitening is None else derived_fingerprint(found, f"whitened {whitening.sha256}"),
        dim=vectors.shape[1],
        pooling=pooling,
        layer=layer,
        num_layers=body.num_layers,
        final_norm=config.final_norm,
        normalize=config.normalize,
        whitening=None if whitening is None else whitening.sha256,
        grid=(features.shape[1], features.shape[2]),
        patch_dim=features.shape[3],
        preprocess=preprocess,
    )
    return model, spec
