"""Hardloop closes the loop data → label → train → deploy for vision models.

`from hardloop import Capture` in a model server, `from hardloop import select` in a notebook. Both are looked up on
first use, so that importing the package costs nothing and the base install needs neither torch nor a server.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feedback.capture import Capture, CapturePolicy
    from miner.select import select

__version__ = "0.1.0"
__all__ = ["Capture", "CapturePolicy", "select"]

_HOMES = {"Capture": "feedback.capture", "CapturePolicy": "feedback.capture", "select": "miner.select"}
# What only an extra brings: named when it is asked for, not when a selection is half made.
_EXTRAS = {"select": ("miner", ("faiss", "numba"))}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        extra, needed = _EXTRAS.get(name, ("", ()))
        missing = [module for module in needed if find_spec(module) is None]
        if missing:
            raise ImportError(f"hardloop.{name} needs {' and '.join(missing)}: pip install 'hardloop[{extra}]'")
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hardloop' has no attribute {name!r}")
