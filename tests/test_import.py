"""What `import parhelion` needs and brings."""

import subprocess
import sys

NOT_NEEDED = ("accelerate", "beartype", "jaxtyping", "matplotlib", "rich", "tyro")

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
print(len(parhelion.list_models()))
"""


def test_operations_layers_and_models_need_torch_and_timm_only() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_detection_is_there_when_asked_for() -> None:
    said = "import parhelion; print(parhelion.detection.mask_rcnn.__name__); parhelion.detections"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False)
    assert done.stdout == "mask_rcnn\n"
    assert "has no attribute 'detections'" in done.stderr
