"""The page of a drawing: every picture in one file that needs no other, for light and dark screens."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from PIL import Image

import mcbeit
from mcbeit.encoder import EncoderSpec
from mcbeit.viz.pictures import heat_scale, jpeg, png


@dataclass(frozen=True)
class Picture:
    """A picture of the page. `alt` says what it shows, for those who do not see it."""

    image: Image.Image
    alt: str
    caption: str = ""
    note: str = ""  # in small letters below the caption


@dataclass(frozen=True)
class Group:
    """Pictures that belong together, in a frame."""

    pictures: Sequence[Picture]
    scale: tuple[float, float] | None = None  # what the colours of heat maps begin and end with


@dataclass(frozen=True)
class Page:
    """Everything that stands on a page."""

    kicker: str
    title: str
    lead: str
    groups: Sequence[Group]
    spec: EncoderSpec
    explanation: Sequence[str]
    is_wide: bool = False  # a group takes the whole width, else groups stand beside each other


def render(page: Page) -> str:
    """The page as HTML."""
    template = files("mcbeit.viz").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["uri"] = _uri
    text = environment.from_string(template).render(
        page=page, facts=_facts(page.spec), version=mcbeit.__version__, scale=heat_scale()
    )
    return text.encode(errors="replace").decode()


def _facts(spec: EncoderSpec) -> list[tuple[str, str]]:
    rows, columns = spec.grid
    return [
        ("model", os.fsencode(spec.name).decode(errors="replace")),
        ("features", f"layer {spec.layer} of {spec.num_layers}, {rows} x {columns} patches of dim {spec.patch_dim}"),
        ("image size", f"{spec.image_size} px, as the model sees it"),
        ("fingerprint", spec.fingerprint[:16]),
    ]


def _uri(picture: Image.Image) -> str:
    """Photographs as JPEG; what is transparent, or small, to the bit."""
    is_exact = picture.mode == "RGBA" or picture.height == 1
    kind, content = ("png", png(picture)) if is_exact else ("jpeg", jpeg(picture))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
