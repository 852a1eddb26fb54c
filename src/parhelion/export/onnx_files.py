"""ONNX files: written by PyTorch's exporter, run by onnxruntime."""

import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from parhelion.errors import UserError
from parhelion.export.facts import Facts
from parhelion.export.graph import IMAGES, LOGITS, PROBABILITIES
from parhelion.export.running import Opened

ONNX_FILE = "float.onnx"
AXES = {False: ("batch", None, "height", "width"), True: ("batch", "height", "width", None)}
"""Names of the axes of the images, by whether the file prepares them."""


def write(program: ExportedProgram, path: Path, facts: Facts, scratch: Path) -> None:
    """Write `program` as an ONNX file, weights inside, to `path` and to ONNX_FILE in the folder `scratch`."""
    with _quiet():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[IMAGES],
            output_names=[PROBABILITIES if facts.prepares else LOGITS],
        )
    model = exported.model_proto
    _name_axes(model, AXES[facts.prepares])
    _save(model, scratch / ONNX_FILE)
    from_onnx(scratch / ONNX_FILE, path)


def from_onnx(onnx_file: Path, path: Path) -> None:
    """Write what `onnx_file` holds in this format: it is the same."""
    shutil.copyfile(onnx_file, path)


def tell(path: Path, facts: Facts) -> None:
    """Let the file `path` say `facts`."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, facts.as_texts())
    _save(model, path)


def opened(path: Path) -> Opened:
    """The file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Its threads would otherwise wait busily while others are timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # Its errors have no common ancestor but this.
    except Exception as error:
        # After a number, a name in capitals, and perhaps the path.
        reason = " ".join(str(error).split()).rpartition(":")[2] or type(error).__name__
        raise UserError(f"{path} is damaged, or no ONNX file that onnxruntime runs ({reason.rstrip('.')})") from error
    facts = Facts.from_texts(session.get_modelmeta().custom_metadata_map, str(path))
    given = session.get_inputs()[0]
    shape = tuple(side if isinstance(side, int) else None for side in given.shape)
    return Opened(facts=facts, answer=lambda images: session.run(None, {given.name: images})[0], shape=shape)


def _save(model: Any, path: Path) -> None:
    import onnx

    try:
        onnx.save(model, path)
    # Protobuf's limit.
    except ValueError as error:
        raise UserError(f"{path.name} cannot be written: an ONNX file holds at most 2 GB ({error})") from error


def _name_axes(model: Any, names: tuple[str | None, ...]) -> None:
    """Call the axes of the images by `names`, here and wherever else they occur."""
    graph = model.graph
    given = graph.input[0].type.tensor_type.shape.dim
    known = {dim.dim_param: name for dim, name in zip(given, names, strict=True) if dim.dim_param and name}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: known.get(word[0], word[0]), dim.dim_param)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the exporter keep to itself what concerns its makers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
