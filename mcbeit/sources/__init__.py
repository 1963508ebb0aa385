"""Where images come from. A source gives the encoded bytes of image `i`; decoding is somebody else's."""

from mcbeit.sources.files import SUFFIXES, FileSource, open_folder
from mcbeit.sources.joined import JoinedSource
from mcbeit.sources.opening import PREPARED, SourceKind, open_source
from mcbeit.sources.source import ImageSource, Labels, source_notes

__all__ = [
    "PREPARED",
    "SUFFIXES",
    "FileSource",
    "ImageSource",
    "JoinedSource",
    "Labels",
    "SourceKind",
    "open_folder",
    "open_source",
    "source_notes",
]
