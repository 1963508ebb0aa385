"""Where images come from. A source gives the encoded bytes of image `i`; decoding is somebody else's."""

from mcbeit.sources.files import FileSource, open_folder
from mcbeit.sources.joined import JoinedSource
from mcbeit.sources.opening import PREPARED, SourceKind, open_source
from mcbeit.sources.source import SUFFIXES, Damage, ImageSource, Labels, source_notes
from mcbeit.sources.subset import SubsetSource

__all__ = [
    "PREPARED",
    "SUFFIXES",
    "Damage",
    "FileSource",
    "ImageSource",
    "JoinedSource",
    "Labels",
    "SourceKind",
    "SubsetSource",
    "open_folder",
    "open_source",
    "source_notes",
]
