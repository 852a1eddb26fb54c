"""Programs of torch.export, in plain PyTorch operations: they run where Parhelion is not installed."""

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from parhelion.export.facts import Facts
from parhelion.export.running import Opened

# The entry of the archive that holds the facts.
ENTRY = "parhelion.json"


def write(program: ExportedProgram, path: Path, _facts: Facts, _scratch: Path) -> None:
    """Write `program` as torch.export.load reads it."""
    torch.export.save(program, path)


def tell(path: Path, facts: Facts) -> None:
    """Let the file `path` say `facts`, in an entry of the archive that `extra_files` of torch.export.load reads."""
    import json

    torch.export.save(torch.export.load(path), path, extra_files={ENTRY: json.dumps(facts.as_texts())})


def opened(path: Path) -> Opened:
    """The file in PyTorch. Only for files that we have written: it may hold pickles."""
    import json

    extra = {ENTRY: ""}
    program = torch.export.load(path, extra_files=extra)
    facts = Facts.from_texts(json.loads(extra[ENTRY]), str(path))
    module = program.module()
    (name,) = program.graph_signature.user_inputs
    given: Any = next(node for node in program.graph.nodes if node.name == name)
    shape = tuple(side if isinstance(side, int) else None for side in given.meta["val"].shape)

    def answer(images: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return Opened(facts=facts, answer=answer, shape=shape)
