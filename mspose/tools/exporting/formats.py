"""The formats of exported files: how they are written, and opened again for a comparison."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from mspose.libraries import require
from mspose.tools.exporting.deployed import OUTPUTS, Deployed

METADATA = "metadata.json"  # within a torch.export file
OPSET = 18
DYNAMIC = ({0: Dim("batch"), 1: Dim("height"), 2: Dim("width")},)

Answer = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]
"""A function of images, RGB uint8 (B, H, W, 3), that returns `OUTPUTS`."""


class Format(NamedTuple):
    """A format of exported files."""

    file_name: str
    require: Callable[[], object]
    """Raises MsposeError where a library that the format needs is missing."""
    write: Callable[[ExportedProgram, Mapping[str, Any]], bytes]
    """The file's content from a program and its metadata."""
    open: Callable[[bytes], Answer]


def trace(module: Deployed) -> ExportedProgram:
    """The program of a module, for any number of images of any size."""
    resize = module.preprocessing.resize
    image_BHW3 = torch.zeros(2, resize + 7, resize + 13, 3, dtype=torch.uint8)  # any size
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), (image_BHW3,), dynamic_shapes=DYNAMIC, strict=False
        )
    program.graph.eliminate_dead_code()  # for the losses of training
    program.graph_module.recompile()
    return program


def _write_onnx(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["image"],
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    _name_sizes(model.graph)
    for name, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    return model.SerializeToString()


def _name_sizes(graph: Any) -> None:
    """Give dynamic sizes their names in `DYNAMIC` in place of the exporter's own."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        names = ["batch", "height", "width"] if value.name == "image" else ["batch"]
        for size, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            size.dim_param = name


def _open_onnx(content: bytes) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised as well
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def answer(image_BHW3: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"image": image_BHW3}), strict=True))

    return answer


def _write_torch_export(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def _open_torch_export(content: bytes) -> Answer:
    module = torch.export.load(io.BytesIO(content)).module()

    def answer(image_BHW3: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.no_grad():
            return {
                name: output.numpy()
                for name, output in module(torch.from_numpy(image_BHW3)).items()
            }

    return answer


FORMATS = {
    "onnx": Format(
        "model.onnx",
        lambda: require("onnx", "onnxruntime", "onnxscript"),
        _write_onnx,
        _open_onnx,
    ),
    "torch-export": Format("model.pt2", lambda: None, _write_torch_export, _open_torch_export),
}
