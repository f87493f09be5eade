"""Where pictures come from: folders, archives read in place, list files, the built-in digits."""

from xcite.data.sources.digits import Digits
from xcite.data.sources.folder import ImageFolder
from xcite.data.sources.lists import ListFile, read_class_names
from xcite.data.sources.opening import has_split, open_source
from xcite.data.sources.source import Found, Names, Source, Subset
from xcite.data.sources.tar import TarShards

__all__ = [
    "Digits",
    "Found",
    "ImageFolder",
    "ListFile",
    "Names",
    "Source",
    "Subset",
    "TarShards",
    "has_split",
    "open_source",
    "read_class_names",
]
