"""Identities: content hashes, keys that sort by time, and the one draw that reserves the audit holdout."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime

from hardloop.core.errors import BadSettings

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,47}")


def sample_id(image: bytes) -> str:
    """The id of a sample: the first 128 bits of the SHA-256 of its stored bytes, as 32 hexadecimal digits.

    Collisions by chance are out of reach (2^64 images for an even chance), so equal ids mean equal bytes.
    """
    return hashlib.sha256(image).hexdigest()[:32]


def digest(value: object) -> str:
    """SHA-256 of a JSON-serialisable value, the same for equal values whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def short_digest(value: object) -> str:
    """The first 16 hexadecimal digits of `digest`: for names people read."""
    return digest(value)[:16]


def loop_name(name: str) -> str:
    """The name itself when it can stand in a bucket key, a URL and an MLflow model name.

    Raises BadSettings otherwise.
    """
    if not _NAME.fullmatch(name):
        raise BadSettings(
            f"loop name {name!r}: 2 to 48 of a-z, 0-9 and '-' are allowed, starting with a letter or digit"
        )
    return name


def uniform(*parts: str) -> float:
    """A number in [0, 1) drawn by hashing the parts: uniform over parts, and the same in every process."""
    raw = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(raw[:7], "big") / float(1 << 56)


def reserved(group_id: str, salt: str, share: float) -> bool:
    """Whether a group belongs to the audit holdout, which is never trained on.

    share: the part of all groups to reserve, in [0, 1]. The draw looks at nothing but the group and the loop's salt, so
    the holdout is a uniform slice of production, and every process comes to the same answer without asking.
    """
    return uniform("audit", salt, group_id) < share


def time_ordered_key(at: datetime | None = None, *, rank: int = 0) -> str:
    """A key that sorts by time, then by `rank`, and never collides: `20261123T063942123456Z-000000-9f86d081`."""
    moment = (at or datetime.now(UTC)).astimezone(UTC)
    return f"{moment:%Y%m%dT%H%M%S%f}Z-{rank:06d}-{secrets.token_hex(4)}"


def image_key(sample: str, suffix: str) -> str:
    """Where an image lies in the store: under its content hash, spread over 256 prefixes."""
    return f"images/{sample[:2]}/{sample}.{suffix}"


def settings_digest(settings: Mapping[str, object]) -> str:
    """The short digest of a policy's or recipe's settings, which receipts and runs carry."""
    return short_digest(dict(settings))
