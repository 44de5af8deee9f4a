"""Which keys objects may have, in every blob store alike."""

import unicodedata

from hardloop.core.errors import BadInput

_MAX_KEY_BYTES, _MAX_SEGMENT_BYTES = 1024, 255  # S3's own limit, and that of the file systems beneath some servers


def check_key(key: str) -> str:
    """The key itself.

    Raises BadInput for an empty segment, '.', '..', '\\', control characters, text that is not Unicode, more than 255
    bytes in a segment or 1,024 in all. Servers differ in what they make of those: some refuse, some silently store
    under another name.
    """
    parts = key.split("/")
    if (
        any(part in ("", ".", "..") for part in parts)
        or "\\" in key
        or any(unicodedata.category(c) in ("Cc", "Cs") for c in key)
    ):
        raise BadInput(f"key {key!r}: segments must not be empty, '.', '..' or hold '\\' or control characters")
    if len(key.encode()) > _MAX_KEY_BYTES or any(len(part.encode()) > _MAX_SEGMENT_BYTES for part in parts):
        raise BadInput(
            f"key {key[:80]!r}… has {len(key.encode())} bytes: at most {_MAX_KEY_BYTES} are taken, "
            f"{_MAX_SEGMENT_BYTES} between two '/'"
        )
    return key
