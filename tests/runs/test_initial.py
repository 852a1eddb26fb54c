"""What `--init-from` takes: runs, files, the hub, timm; and what it refuses."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from parhelion.data.transforms import Preprocessing
from parhelion.errors import UserError
from parhelion.runs import initial
from parhelion.runs.initial import initial_weights, initialise
from parhelion.classification.saved import Classifier, save_classifier
from parhelion.models.catalog import create_model
from parhelion.files.weights import save_weights

CLASSES = ("ant", "bee", "cat")
ARGUMENTS = {"num_classes": 3, "in_chans": 1, "image_size": 16, "rows": "window", "block": 8, "halo": 2}


@pytest.fixture
def old() -> nn.Module:
    return create_model("halonet_tiny", **ARGUMENTS).eval()


@pytest.fixture
def run_folder(tmp_path: Path, old: nn.Module) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    classifier = Classifier(
        model=old,
        name="halonet_tiny",
        arguments=ARGUMENTS,
        class_names=CLASSES,
        preprocessing=Preprocessing(image_px=16, in_chans=1, mean=(0.25,), std=(0.5,)),
        epoch=4,
        metrics={},
    )
    save_classifier(folder / "weights.safetensors", classifier)
    (folder / "recipe.json").write_text(json.dumps({"model": "halonet_tiny"}))
    return folder


def save(model: nn.Module, path: Path, *, prefix: str = "") -> Path:
    """The tensors of `model` in a file that tells nothing else."""
    save_file({prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def hub_with(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[tuple[str, str, str | None]]:
    """A hub that gives `answer` to everything; what was asked for."""
    asked = []

    def download(repository: str, file: str, *, revision: str | None) -> str:
        asked.append((repository, file, revision))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(initial, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize("spec_of", [lambda folder: folder, lambda folder: folder / "weights.safetensors"])
def test_a_run_starts_another_with_everything_it_knows(
    run_folder: Path, old: nn.Module, spec_of: Callable[[Path], Path]
) -> None:
    new = create_model("halonet_tiny", num_classes=3, block=6, halo=3, rows="window").eval()
    report = initialise(new, str(spec_of(run_folder)), class_names=CLASSES)
    assert report.architecture == "halonet_tiny"
    assert report.choices == ("block 8 -> 6", "halo 2 -> 3")
    assert report.counts == {"loaded": len(old.state_dict()) - 7, "adapted": 7, "started afresh": 0, "dropped": 0}
    assert torch.equal(new.head.fc.weight, old.head.fc.weight)
    old.resize(block=6, halo=3)
    grey = torch.randn(2, 1, 24, 40)
    torch.testing.assert_close(new(grey.expand(-1, 3, -1, -1)), old(grey), rtol=1e-4, atol=1e-5)


def test_a_run_on_other_classes_lends_all_but_its_classifier(run_folder: Path) -> None:
    new = create_model("halonet_tiny", **ARGUMENTS)
    report = initialise(new, str(run_folder), class_names=("ant", "cat", "bee"))
    assert report.counts["started afresh"] == report.counts["dropped"] == 2
    assert new.head.fc.weight.eq(0).all()


@pytest.mark.parametrize(
    ("ours", "note"),
    [
        (((0.25,) * 3, (0.5,) * 3), None),
        (((0.25,), (0.5,)), None),
        (None, None),
        (
            ((0.485, 0.456, 0.406), (0.5,) * 3),
            "mean 0.25 and deviation 0.5, those of this run are with mean 0.485 0.456 0.406 and deviation 0.5 0.5 0.5; "
            "--mean 0.25 0.25 0.25 --std 0.5 0.5 0.5 normalises as the weights expect",
        ),
    ],
)
def test_weights_of_images_normalised_otherwise_say_so(
    run_folder: Path, ours: tuple[tuple[float, ...], tuple[float, ...]] | None, note: str | None
) -> None:
    arguments = {**ARGUMENTS, "in_chans": 3 if ours is None else len(ours[0])}
    report = initialise(create_model("halonet_tiny", **arguments), str(run_folder), normalised=ours)
    if note is None:
        assert report.notes == ()
    else:
        assert report.notes == (f"the images behind {run_folder} were normalised with {note}",)
        assert report.lines()[1] == f"  note: {report.notes[0]}"
        assert report.as_dict()["notes"] == report.notes


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module."])
def test_a_plain_file_starts_a_model_also_from_within_a_wrapper(tmp_path: Path, old: nn.Module, prefix: str) -> None:
    path = save(old, tmp_path / "plain.safetensors", prefix=prefix)
    new = create_model("halonet_tiny", **ARGUMENTS).eval()
    report = initialise(new, str(path), class_names=CLASSES)
    assert report.architecture is None
    assert report.counts["loaded"] == len(report.tensors)
    images = torch.randn(2, 1, 24, 40)
    assert torch.equal(new(images), old(images))


def test_a_feature_extractor_starts_from_a_whole_classifier(run_folder: Path, old: nn.Module) -> None:
    pyramid = create_model("halonet_tiny", features_only=True, **{**ARGUMENTS, "num_classes": 0}).eval()
    report = initialise(pyramid, str(run_folder))
    assert report.counts["dropped"] == 2
    images = torch.randn(2, 1, 24, 40)
    assert torch.equal(pyramid(images)[-1], old.forward_features(images))


def test_a_repository_of_the_hub_starts_a_model(
    run_folder: Path, old: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub_with(monkeypatch, run_folder / "weights.safetensors")
    new = create_model("halonet_tiny", **ARGUMENTS)
    report = initialise(new, "hf-hub:owner/name@v2", class_names=CLASSES)
    assert report.label == "hf-hub:owner/name@v2"
    assert report.counts["loaded"] == len(report.tensors)
    initial_weights("hf-hub:owner/name")
    assert asked == [("owner/name", "model.safetensors", "v2"), ("owner/name", "model.safetensors", None)]


def test_a_resnet_of_timm_starts_a_network_with_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm.create_model("resnet50")
    asked = hub_with(monkeypatch, save(theirs, tmp_path / "model.safetensors"))
    new = create_model("gsa_resnet50", num_classes=7, image_size=64)
    report = initialise(new, "timm:resnet50", class_names=[str(number) for number in range(7)])
    assert set(asked) == {("timm/resnet50.a1_in1k", "model.safetensors", None)}
    assert report.architecture == "timm's resnet50"
    assert initial_weights("timm:resnet50").normalised == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    dropped = [tensor.in_weights.name for tensor in report.tensors if tensor.fate == "dropped"]
    assert len(dropped) == 16 + 2
    assert {name.split(".")[-2] for name in dropped} == {"conv2", "fc"}
    afresh = [tensor.in_model.name for tensor in report.tensors if tensor.fate == "started afresh"]
    assert all("operator" in name or "head.fc" in name for name in afresh)
    assert torch.equal(new.stages[3][2].expand.weight, theirs.layer4[2].conv3.weight)
    line = "  dropped: layer1.0.conv2.weight, 64x64x3x3: attention in place of a 3x3 convolution"
    assert line in report.lines()
    small = create_model("gsa_tiny")
    with pytest.raises(UserError, match="the weights in timm:resnet50, of timm's resnet50, do not fit gsa_tiny"):
        initialise(small, "timm:resnet50")


def test_without_network_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (LocalEntryNotFoundError("no connection\nmany\nlines"), HFValidationError("no connection")):
        hub_with(monkeypatch, error)
        for spec in ("hf-hub:owner/name", "timm:resnet50"):
            with pytest.raises(UserError, match=rf"^the model.safetensors of {spec} cannot .*\(no connection\); .*"):
                initial_weights(spec)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("timm:resnet5O", r"timm has no model 'resnet5O'; did you mean resnet50"),
        ("timm:resnet50.best", r"timm has no weights 'resnet50.best'; it has resnet50.*a1_in1k"),
        ("timm:halonet_h1", r"timm's halonet_h1 has no counterpart here: it is a ByobNet, not a ResNet"),
        ("timm:parhelion_halonet_h1", r"has no counterpart here: it is Parhelion's own"),
        ("timm:resnet200", r"timm has no weights of resnet200 on the hub"),
        ("timm:", "timm has no model ''"),
        (
            "halonet_h4",
            r"nothing at 'halonet_h4'; give a run folder, .*, hf-hub:OWNER/NAME or timm:NAME$",
        ),
        ("", "nothing at '';"),
        ("torchvision:maskrcnn_resnet50_fpn", "is a name for detectors, which start from torchvision's; give a run"),
    ],
)
def test_what_is_not_there_is_named_with_what_would_be_right(spec: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        initial_weights(spec)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
            return (tmp_path / "opened").touch, ()

    for name, sentence in (("w.pth", "is a pickle"), ("w.bin", "is a pickle"), ("w.safetensors", "not a whole")):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UserError, match=sentence):
            initial_weights(str(tmp_path / name))
    assert not (tmp_path / "opened").exists()


def test_damaged_files_are_refused(tmp_path: Path, run_folder: Path, old: nn.Module) -> None:
    whole = (run_folder / "weights.safetensors").read_bytes()
    for length in (0, 5, 900, len(whole) - 1):
        (run_folder / "weights.safetensors").write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            initial_weights(str(run_folder))
    (run_folder / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights\.safetensors"):
        initial_weights(str(run_folder))
    old.stages[1][0].expand.weight.data[3, 1] = float("nan")
    with pytest.raises(UserError, match=r"not finite in 1 tensors \(first: stages\.1\.0\.expand\.weight\)"):
        initial_weights(str(save(old, tmp_path / "nan.safetensors")))


def test_a_header_that_does_not_tell_the_truth_is_refused(tmp_path: Path, old: nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, old.state_dict(), {"model": "halonet_tiny", "model_arguments": {**ARGUMENTS, "block": 6}})
    with pytest.raises(UserError, match=r"says that it is of halonet_tiny, but.*6 tensors of another shape"):
        initial_weights(str(path))
    save_weights(path, old.state_dict(), {"model": "halonet_small", "model_arguments": ARGUMENTS})
    with pytest.raises(UserError, match=r"does not build: there is no model 'halonet_small'"):
        initial_weights(str(path))


def test_weights_of_another_architecture_or_none_of_ours_are_refused(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(UserError, match="of halonet_tiny, do not fit resnet_tiny"):
        initialise(create_model("resnet_tiny"), str(run_folder))
    with pytest.raises(UserError, match=r"Linear is no model of parhelion\.create_model"):
        initialise(nn.Linear(2, 3), str(run_folder))
    theirs = save(timm.create_model("resnet18"), tmp_path / "timm.safetensors")
    with pytest.raises(UserError, match=r"as ResNets of timm and torchvision do.*timm:NAME"):
        initial_weights(str(theirs))
    other = save(nn.Linear(2, 3), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="of an architecture that they do not name, do not fit resnet_tiny"):
        initialise(create_model("resnet_tiny"), str(other))
