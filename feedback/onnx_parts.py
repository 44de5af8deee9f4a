"""Whether an ONNX file keeps tensors in other files, read from its protobuf bytes.

ONNX Runtime opens whatever path a tensor's `external_data` names while it loads a network, so this is asked before. The
serving install has no `onnx` package; the few fields on the way to a tensor are walked by hand, and tensors' own bytes
are stepped over. Field numbers: onnx.proto3, IR version 10; they never change meaning in protobuf.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from hardloop.core.errors import BadModel

# Message -> field number -> the message it holds. What is not listed cannot hold a tensor.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_MAX_DEPTH = 64


def has_external_data(path: Path) -> bool:
    """Whether any tensor of the network lies outside its file. Raises BadModel where the file is no protobuf."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise BadModel(f"{path} is empty: expected an ONNX network")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _external(data, 0, len(data), "model", 0)
            except ValueError as error:
                raise BadModel(f"{path} is not an ONNX network: {error}") from None


def _external(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError(f"its parts are nested more than {_MAX_DEPTH} deep")
    inside = _INSIDE[message]
    for number, first, last in _fields(data, start, end):
        if message == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION):
            # A data location of 0 says that the tensor is here; it is a varint, whose bytes are first:last.
            if number == _EXTERNAL_DATA or data[first:last] != b"\0":
                return True
        elif number in inside and _external(data, first, last, inside[number], depth + 1):
            return True
    return False


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Every field of a message: its number, and where its value's bytes begin and end."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if tag >> 32 or number == 0:  # ONNX Runtime's protobuf reads the lower 32 bits alone: another field than here
            raise ValueError(f"byte {position} ends the tag {tag:#x}, which no field has")
        first = position
        if kind == 0:
            _, position = _varint(data, position, end)
        elif kind == 1:
            position += 8
        elif kind == 2:
            length, first = _varint(data, position, end)
            position = first + length
        elif kind == 5:
            position += 4
        else:
            raise ValueError(f"byte {position} has wire type {kind}")
        if position > end:
            raise ValueError(f"field {number} at byte {first} runs past its end")
        yield number, first, position


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError(f"it is cut off at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number at byte {position} is too long")
