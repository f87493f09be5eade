"""Pictures that are written as text: base64 and ``data:`` URLs, in JSON and in forms."""

import binascii
import json
from typing import Any

from xcite.server.request_bodies import UploadError

EXPECTED = (
    "send pictures as files of a multipart/form-data form, one picture as the body with an "
    'image/* content type, or JSON: {"image": BASE64} or {"images": [BASE64, ...]}'
)
IN_THE_ADDRESS = frozenset({"top", "attention"})

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def from_base64(text: str) -> bytes:
    """The bytes that base64 stands for, as a ``data:`` URL or bare.

    Line breaks, the alphabet for URLs and missing padding are understood.

    Raises:
        ValueError: it is something else, in words.
    """
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.rstrip().lower().endswith(";base64"):
            raise ValueError("the data: URL is not base64")
    elif text[:8].lower().startswith(("http://", "https://")):
        raise ValueError("this server fetches no addresses; send the picture itself, as base64")
    try:
        letters = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n").rstrip(b"=")
        return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4), strict_mode=True)
    except ValueError as error:
        raise ValueError("not base64") from error


def written_in_json(body: bytes, max_files: int) -> list[tuple[str, str]]:
    """Name and base64 of every picture of a JSON body; the name is empty where none is given.

    Understood are an object with `image` or `images` and a list, of texts or of objects with
    `image` and perhaps `name`.

    Raises:
        UploadError: 400 not JSON, 413 more than `max_files` need, 422 something else.
    """
    # Base64 holds none of these, so they bound what parsing makes of the body, and its depth.
    if sum(body.count(sign) for sign in b"[{,") > 16 * max_files + 64:
        raise UploadError(413, f"the JSON holds more than {max_files} pictures need")
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UploadError(400, f"the body is not JSON; {EXPECTED}") from error
    if isinstance(told, dict) and ("images" in told or isinstance(told.get("image"), list)):
        refuse_parameters(told)
        told = told.get("images", told.get("image"))
    entries = told if isinstance(told, list) else [told]
    if len(entries) > max_files:
        raise UploadError(413, f"more than {max_files} files in one request; send fewer")
    if not entries:
        raise UploadError(422, f"the JSON holds no picture; {EXPECTED}")
    return [_entry(entry) for entry in entries]


def _entry(entry: Any) -> tuple[str, str]:
    name: Any = ""
    if isinstance(entry, dict):
        refuse_parameters(entry)
        name, entry = entry.get("name", ""), entry.get("image")
    if not isinstance(entry, str) or not isinstance(name, str):
        raise UploadError(422, f"the JSON is not as expected; {EXPECTED}")
    return name, entry


def refuse_parameters(names: Any) -> None:
    """Refuse parameters that stand where they would have no effect.

    Raises:
        UploadError: 422.
    """
    for name in sorted(IN_THE_ADDRESS & set(names)):
        raise UploadError(422, f"{name} belongs in the address, as in /predict?{name}=1")
