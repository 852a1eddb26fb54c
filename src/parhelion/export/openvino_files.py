"""Files of OpenVINO, NAME.xml and NAME.bin: converted from an ONNX file."""

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from parhelion.errors import UserError
from parhelion.export import onnx_files
from parhelion.export.facts import VERSION_KEY, Facts
from parhelion.export.running import Opened

SECTION = "parhelion"


def write(program: ExportedProgram, path: Path, facts: Facts, scratch: Path) -> None:
    """Write `program` for OpenVINO, in float32, by way of ONNX_FILE in the folder `scratch`."""
    onnx_files.write(program, scratch / "copy.onnx", facts, scratch)
    from_onnx(scratch / onnx_files.ONNX_FILE, path)


def from_onnx(onnx_file: Path, path: Path) -> None:
    """Write what `onnx_file` holds for OpenVINO, the weights in a .bin file beside `path`."""
    import openvino

    openvino.save_model(openvino.Core().read_model(onnx_file), path, compress_to_fp16=False)


def tell(path: Path, facts: Facts) -> None:
    """Let the file `path` say `facts`."""
    import openvino

    # It keeps the weights' file open that it would write over.
    model = openvino.Core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    for name, text in facts.as_texts().items():
        model.set_rt_info(text, [SECTION, name])
    openvino.save_model(model, path, compress_to_fp16=False)


def opened(path: Path) -> Opened:
    """The file in OpenVINO, on the CPU, in float32."""
    import openvino

    if not path.with_suffix(".bin").is_file():
        raise UserError(f"{path} has no weights: there is no {path.with_suffix('.bin').name} beside it")
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        core = openvino.Core()
        model = core.read_model(path)
        facts = Facts.from_texts(_texts(model), str(path))
        request = core.compile_model(model, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"OpenVINO cannot open {path}: {reason[:200]}") from error
    shape = tuple(None if side.is_dynamic else side.get_length() for side in model.input(0).get_partial_shape())
    # A shared output would change under the next call; copying a few numbers costs nothing.
    return Opened(facts=facts, answer=lambda images: request.infer([images], share_inputs=True)[0].copy(), shape=shape)


def _texts(model: Any) -> dict[str, str]:
    if not model.has_rt_info([SECTION, VERSION_KEY]):
        return {}
    names = (VERSION_KEY, *Facts.__dataclass_fields__)
    return {
        name: str(model.get_rt_info([SECTION, name]).astype(str))
        for name in names
        if model.has_rt_info([SECTION, name])
    }
