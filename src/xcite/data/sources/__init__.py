"""Where pictures come from: folders, archives read in place, list files, the built-in digits."""

from typing import TYPE_CHECKING

from xcite.data.sources.class_names import read_class_names
from xcite.data.sources.digits import Digits
from xcite.data.sources.folder import ImageFolder
from xcite.data.sources.lists import ListFile
from xcite.data.sources.opening import has_split, open_source
from xcite.data.sources.source import Found, Names, Source, Subset, common_folder, evenly
from xcite.data.sources.tar import TarShards
from xcite.lazy_modules import lazy_modules

__all__ = [
    "Digits",
    "Found",
    "ImageFolder",
    "ListFile",
    "Names",
    "Source",
    "Subset",
    "TarShards",
    "common_folder",
    "evenly",
    "has_split",
    "open_source",
    "read_class_names",
]


if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__)
