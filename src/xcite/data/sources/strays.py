"""Names of files and folders that systems and programs leave beside pictures."""

from pathlib import PurePosixPath

from xcite.data.formats import is_picture

_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"),
    *("lost+found", "__pycache__", ".ipynb_checkpoints", ".ds_store"),
}
_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db", ".ds_store", "icon\r"}


def stray_folder(name: str) -> str | None:
    """What kind of folder holds no data, going by its name; None for any other."""
    if name.casefold() in _FOLDERS:
        return "system folders"
    return "hidden folders" if name.startswith(".") else None


def stray_file(name: str) -> str | None:
    """What kind of file is no picture, going by its name; None for a picture."""
    if name.casefold() in _FILES:
        return "system files"
    if name.startswith("."):
        return "hidden files"
    if is_picture(name):
        return None
    suffix = PurePosixPath(name).suffix.lower()
    return f"{suffix} files" if 1 < len(suffix) <= 12 else "files without an extension"
