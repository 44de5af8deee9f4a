"""Signed image addresses, for an annotation tool that cannot reach the bucket (or where there is only a folder)."""

import hashlib
import hmac


def link(base_url: str, secret: str, loop: str, sample_id: str) -> str:
    """The address of a sample's image at this service. It stays valid as long as the secret does.

    Tasks keep their image's address for ever, so an expiring one would leave annotators with broken images.
    """
    return f"{base_url}/images/{loop}/{sample_id}/{_signature(secret, loop, sample_id)}"


def valid(secret: str, loop: str, sample_id: str, signature: str) -> bool:
    """Whether the signature is ours, compared in constant time."""
    return hmac.compare_digest(_signature(secret, loop, sample_id).encode(), signature.encode())


def _signature(secret: str, loop: str, sample_id: str) -> str:
    return hmac.new(secret.encode(), f"image\x1f{loop}\x1f{sample_id}".encode(), hashlib.sha256).hexdigest()
