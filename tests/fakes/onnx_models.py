"""Tiny real ONNX models for tests: a linear network over an image's mean colour, written as a complete model folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hardloop.core.model_files import ModelCard, file_digest, write_card


def linear_network(
    weights: np.ndarray, size: int = 4, scale: float = 1.0, input_name: str = "image", batch: int | str = "N"
) -> onnx.ModelProto:
    """Logits = mean RGB in [0, 1] times weights; embedding = that mean times `scale`. Images are size x size."""
    nodes = [
        helper.make_node("Cast", [input_name], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["cast", "axes"], ["mean255"], keepdims=0),
        helper.make_node("Div", ["mean255", "top"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Mul", ["mean", "scale"], ["embedding"]),
    ]
    given = [
        numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
        numpy_helper.from_array(np.float32(255.0), "top"),
        numpy_helper.from_array(np.asarray(weights, dtype=np.float32), "weights"),
        numpy_helper.from_array(np.float32(scale), "scale"),
    ]
    classes = np.asarray(weights).shape[1]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(input_name, TensorProto.UINT8, [batch, size, size, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 3]),
        ],
        given,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_model(
    folder: Path,
    labels: Sequence[str],
    networks: Sequence[onnx.ModelProto],
    *,
    size: int = 4,
    encoder: str = "mean-rgb",
    temperature: float = 1.0,
) -> Path:
    """A model folder as `hardloop.core.model_files` describes it, networks in the order of the committee."""
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(f"member-{number}.onnx" for number in range(len(networks)))
    for name, network in zip(names, networks, strict=True):
        (folder / name).write_bytes(network.SerializeToString())
    card = ModelCard(
        recipe="linear-probe",
        labels=tuple(labels),
        width=size,
        height=size,
        encoder=encoder,
        temperature=temperature,
        members=names,
        files={name: file_digest(folder / name) for name in names},
    )
    write_card(folder, card)
    return folder


def colour_model(
    folder: Path, strength: float = 4.0, members: int = 2, labels: Sequence[str] = ("red", "green", "blue")
) -> Path:
    """A model that names an image's strongest colour; further members are a little less sure each."""
    networks = [linear_network(np.eye(3) * strength / (1 + member)) for member in range(members)]
    return write_model(folder, labels, networks)
