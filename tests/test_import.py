"""What `import parhelion` needs and brings."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import parhelion
from parhelion.lazy import once_imported

NOT_NEEDED = ("accelerate", "beartype", "gsa_pytorch", "jaxtyping", "matplotlib", "rich", "triton", "tyro")

WITHOUT = f"""
import sys
for name in {NOT_NEEDED!r}:
    sys.modules[name] = None  # an import of it now raises ModuleNotFoundError
import torch
import parhelion
layer = parhelion.layers.HaloAttention(8, heads=2, block=4, halo=1)
assert layer(torch.randn(1, 8, 6, 9)).shape == (1, 8, 6, 9)
model = parhelion.create_model("gsa_tiny", num_classes=3)
assert model(torch.randn(2, 3, 24, 40)).shape == (2, 3)
from parhelion.ops import axial_attention, content_attention, halo_attention
q = torch.randn(1, 3, 4, 2, 8)
assert halo_attention(q, q, q, block=2, halo=1).isfinite().all()
assert content_attention(q, q, q).isfinite().all()
assert axial_attention(q, q, torch.randn(5, 8), axis="h").isfinite().all()
from timm.layers.halo_attn import HaloAttn
parhelion.accelerate(HaloAttn(8, num_heads=2))
print(len(parhelion.list_models()))
"""

LISTED = """
import sys
import parhelion
assert "create_model" in dir(parhelion) and "HaloAttention" in dir(parhelion.layers)
assert parhelion.model_info("halonet_h0").params == 5_488_424
assert parhelion.list_models("*_tiny") == ["gsa_tiny", "halonet_tiny", "resnet_tiny"]
print(*{"PIL", "matplotlib", "numpy", "timm", "torch", "torchvision", "tyro"} & sys.modules.keys())
"""


def run(program: str, *words: object) -> str:
    """What `program` prints in a process of its own, called with `words`."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_operations_layers_and_models_need_torch_and_timm_only() -> None:
    accelerated, models = run(WITHOUT).splitlines()
    assert accelerated == "Accelerated 1 HaloAttn: the model itself."
    assert int(models) > 30


def test_names_and_numbers_of_models_need_no_torch() -> None:
    assert run(LISTED) == "\n"


BEFORE_AND_AFTER = """
import os, sys
import torch, torchvision  # what takes longest, once for all

def apart(act):
    process = os.fork()
    if process == 0:
        act()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0

def known_to_timm(order):
    names = {}
    exec(order, names)
    parhelion, timm = names["parhelion"], names["timm"]
    assert set(timm.list_models("parhelion_*")) == {f"parhelion_{name}" for name in parhelion.list_models()}
    model = timm.create_model("parhelion_gsa_tiny", num_classes=3)
    print(order, type(model).__name__, model.num_classes, sep=": ")

def save():
    from parhelion.layers import GlobalSelfAttention, HaloAttention
    model = torch.nn.Sequential(HaloAttention(8, heads=2, block=4, halo=1), GlobalSelfAttention(8, heads=2, size=10))
    torch.export.save(torch.export.export(model.eval(), (torch.ones(1, 8, 6, 10),)), sys.argv[1])

for order in sys.argv[2:]:
    apart(lambda: known_to_timm(order))
apart(save)
"""
ORDERS = ("import parhelion, timm", "import timm, parhelion", "import parhelion.files, timm")
LOADED = """
import sys
import parhelion
import torch
program = torch.export.load(sys.argv[1]).module()
print(*program(torch.ones(1, 8, 6, 10)).shape)
"""


def test_timm_knows_the_models_whichever_is_imported_first_and_a_saved_program_runs(tmp_path: Path) -> None:
    said = run(BEFORE_AND_AFTER, tmp_path / "program.pt2", *ORDERS).splitlines()
    assert said == [f"{order}: ResNet: 3" for order in ORDERS]
    assert run(LOADED, tmp_path / "program.pt2") == "1 8 6 10\n"


def lazy_packages() -> list[str]:
    """Every package whose names are imported when they are first used."""
    root = Path(parhelion.__file__).parent
    files = [file for file in root.rglob("__init__.py") if "= lazily(" in file.read_text(encoding="utf-8")]
    return sorted(".".join(file.parent.relative_to(root.parent).parts) for file in files)


@pytest.mark.parametrize("name", lazy_packages())
def test_a_package_offers_the_same_names_to_everyone(name: str) -> None:
    package = import_module(name)
    names = set(package.__all__)
    assert names <= set(dir(package))
    assert all(hasattr(package, offered) for offered in names)
    # What type checkers and editors see is imported under `if TYPE_CHECKING`, or in any case.
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    imported = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    seen = {alias.asname or alias.name for alias in imported} - {
        "TYPE_CHECKING",
        "lazily",
        "saved_programs",
        "timm_names",
    }
    assert seen == names
    assert not hasattr(package, "nonsense")


def test_all_packages_with_names_are_tested() -> None:
    assert {"parhelion", "parhelion.detection", "parhelion.models", "parhelion.ops.halo"} <= set(lazy_packages())


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'parhelion' has no attribute 'detections'"):
        parhelion.detections  # noqa: B018
    with pytest.raises(ImportError, match=r"cannot import name 'halo_atention' from 'parhelion\.ops'"):
        exec("from parhelion.ops import halo_atention")


def test_something_is_done_once_a_module_has_been_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file, finders, done = tmp_path / "late_module.py", list(sys.meta_path), list[str]()
    file.write_text("raise OSError('not yet')")
    once_imported("late_module", lambda: done.append(sys.modules["late_module"].word))
    with pytest.raises(OSError, match="not yet"):
        import_module("late_module")
    assert done == []
    file.write_text("word = 'a word that is longer'")
    assert import_module("late_module").word == "a word that is longer"
    assert done == ["a word that is longer"]
    assert sys.meta_path == finders
    once_imported("late_module", lambda: done.append("at once"))
    assert done[1:] == ["at once"]
    monkeypatch.delitem(sys.modules, "late_module")
