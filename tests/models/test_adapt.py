"""Weights of one network in another of the same architecture; the report of every tensor."""

import json
import re
from collections.abc import Iterable, Mapping

import pytest
import timm
import torch
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.layers.tables import resized_table
from parhelion.models import create_model
from parhelion.models.adapt import Adaptation, Place, Pretrained, adapt
from parhelion.models.resnet import ResNet
from parhelion.models.timm_resnets import our_name, plain_resnet

# H4 in width and in every kind of layer, with two blocks in each stage.
H4 = {"blocks": (2, 2, 2, 2)}
OLD_WINDOW, NEW_WINDOW = {"block": 8, "halo": 2}, {"block": 12, "halo": 2}


def trained(name: str, **arguments: object) -> ResNet:
    """A model whose normalisations, statistics and biases, too, are unlike their start."""
    model = create_model(name, **arguments).eval()
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor += 0.1 * torch.rand_like(tensor)
        elif tensor.ndim == 0:
            tensor += 5
    return model


def of(trained_model: nn.Module, **facts: object) -> Pretrained:
    """The weights of `trained_model`, about which nothing is known but `facts`."""
    weights = {name: tensor.clone() for name, tensor in trained_model.state_dict().items()}
    return Pretrained(**{"label": "runs/a", "weights": weights, **facts})


def fates(report: Adaptation) -> dict[str, set[str]]:
    """The names of the tensors that met each fate."""
    found: dict[str, set[str]] = {fate: set() for fate in report.counts}
    for tensor in report.tensors:
        found[tensor.fate].add((tensor.in_model or tensor.in_weights).name)
    return found


def assert_complete(report: Adaptation, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Every tensor of both sides stands in the report once, with its shape."""

    def places(tensors: Mapping[str, Tensor]) -> list[Place]:
        return sorted((Place(name, tuple(tensor.shape)) for name, tensor in tensors.items()), key=lambda p: p.name)

    def reported(found: Iterable[Place | None]) -> list[Place]:
        return sorted((place for place in found if place is not None), key=lambda place: place.name)

    assert reported(tensor.in_weights for tensor in report.tensors) == places(weights)
    assert reported(tensor.in_model for tensor in report.tensors) == places(model.state_dict())


def test_h4_at_256_pixels_goes_to_384_with_another_block_and_other_classes() -> None:
    old = trained("halonet_h4", num_classes=11, image_size=256, **OLD_WINDOW)
    new = create_model("halonet_h4", num_classes=7, image_size=384, **NEW_WINDOW).eval()
    pretrained = of(old, architecture="halonet_h4", model=old)
    report = adapt(new, pretrained)

    assert_complete(report, pretrained.weights, new)
    tables = {name for name in old.state_dict() if "table_" in name}
    classifier = {"head.fc.weight", "head.fc.bias"}
    assert len(tables) == 2 * (3 + 3 + 12 + 3)
    assert fates(report) == {
        "loaded": set(old.state_dict()) - tables - classifier,
        "adapted": tables,
        "started afresh": classifier,
        "dropped": classifier,
    }
    loaded = len(old.state_dict()) - 44
    summary, choice, first, *_ = report.lines()
    assert summary == f"init-from runs/a: {loaded} tensors loaded, 42 adapted, 2 started afresh, 2 dropped"
    assert choice == "  changed choice: block 8 -> 12"
    assert first == ("  adapted: stages.0.0.operator.table_h, 23x8 -> 31x8: 19 offsets interpolated to 27")
    assert "  dropped: head.fc.weight, 11x1280: 7 classes, not 11" in report.lines()
    assert "  started afresh: head.fc.bias, 7: zeros (7 classes, not 11)" in report.lines()

    images = torch.randn(1, 3, 64, 96)
    assert torch.equal(new(images), torch.zeros(1, 7))
    old.resize(**NEW_WINDOW)
    with torch.no_grad():
        assert torch.equal(new.forward_features(images), old.forward_features(images))


def test_without_a_new_window_only_the_classifier_differs() -> None:
    old = trained("halonet_h4", num_classes=11, **H4)
    new = create_model("halonet_h4", num_classes=7, **H4).eval()
    report = adapt(new, of(old))
    assert report.counts["adapted"] == 0
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(new.forward_features(images), old.forward_features(images))
    new.reset_classifier(11)
    adapt(new, of(old))
    assert torch.equal(new(images), old(images))


def test_tables_that_grew_come_back_as_they_were() -> None:
    old = trained("halonet_h4", num_classes=5, **H4, block=4, halo=3)
    # 13 offsets lie on every second of 25.
    new = create_model("halonet_h4", num_classes=5, **H4, block=10, halo=3)
    back = create_model("halonet_h4", num_classes=5, **H4, block=4, halo=3).eval()
    adapt(new, of(old))
    adapt(back, of(new))
    for name, tensor in back.state_dict().items():
        torch.testing.assert_close(tensor, old.state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("before", "after"), [("window", "offsets"), ("offsets", "window"), ("window", "window")])
def test_spare_rows_are_told_from_offsets_in_either_layout(before: str, after: str, known: bool) -> None:
    old = trained("halonet_tiny", num_classes=5, rows=before, block=6, halo=3)
    new = create_model("halonet_tiny", num_classes=5, rows=after, block=4, halo=2).eval()
    pretrained = of(old, model=old if known else None)
    report = adapt(new, pretrained)
    assert_complete(report, pretrained.weights, new)
    assert len(fates(report)["adapted"]) == 6
    operator, origin = new.bottlenecks[1].operator, old.bottlenecks[1].operator
    inner = slice(operator.spare_rows, len(operator.table_h) - operator.spare_rows)
    offsets = origin.table_h[origin.spare_rows : len(origin.table_h) - origin.spare_rows]
    assert torch.equal(operator.table_h[inner], resized_table(offsets, 11))
    assert operator.table_h.eq(0).all(1).sum() == 2 * operator.spare_rows
    old.resize(block=4, halo=2)
    images = torch.randn(2, 3, 24, 40)
    torch.testing.assert_close(new.forward_features(images), old.forward_features(images))


def test_tables_of_equal_shape_and_other_offsets_are_interpolated() -> None:
    # 2 b + 4 h - 1 is 23 in both.
    old = trained("halonet_tiny", num_classes=5, rows="window", block=8, halo=2)
    new = create_model("halonet_tiny", num_classes=5, rows="window", block=6, halo=3)
    report = adapt(new, of(old))
    assert {tensor.how for tensor in report.tensors if tensor.fate == "adapted"} == {
        "19 offsets interpolated to 17, 2 spare rows at either end become 3"
    }
    old.resize(block=6, halo=3)
    assert all(torch.equal(new.state_dict()[name], tensor) for name, tensor in old.state_dict().items())


def test_tables_with_the_same_offsets_are_loaded() -> None:
    old = trained("halonet_tiny", num_classes=5, block=8, halo=2)
    new = create_model("halonet_tiny", num_classes=5, block=6, halo=4)
    report = adapt(new, of(old, model=old))
    assert report.counts["loaded"] == len(old.state_dict())
    assert report.choices == ("block 8 -> 6", "halo 2 -> 4")


def test_a_gsa_network_for_another_image_size_is_what_resize_makes() -> None:
    old = trained("gsa_resnet26", num_classes=5, image_size=64)
    new = create_model("gsa_resnet26", num_classes=5, image_size=(96, 160)).eval()
    report = adapt(new, of(old))
    assert_complete(report, old.state_dict(), new)
    assert len(fates(report)["adapted"]) == 2 * 8
    old.resize(image_size=(96, 160))
    images = torch.randn(1, 3, 33, 65)
    with torch.no_grad():
        assert torch.equal(new(images), old(images))


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 5), (5, 2)])
def test_an_image_with_equal_channels_is_seen_as_before(before: int, after: int) -> None:
    old = trained("halonet_tiny", num_classes=5, in_chans=before).double()
    new = create_model("halonet_tiny", num_classes=5, in_chans=after).eval().double()
    report = adapt(new, of(old))
    assert [(tensor.in_model, tensor.how) for tensor in report.tensors if tensor.how] == [
        (Place("stem.0.weight", (32, after, 3, 3)), f"{before} channels summed, and shared out among {after}")
    ]
    grey = torch.randn(2, 1, 24, 40).double()
    torch.testing.assert_close(
        new(grey.expand(-1, after, -1, -1)), old(grey.expand(-1, before, -1, -1)), rtol=1e-12, atol=1e-12
    )


def test_the_classifier_is_kept_for_the_same_classes_in_the_same_order_only() -> None:
    old = trained("resnet_tiny", num_classes=3)

    def classifier(named_before: object, named_now: object) -> Tensor:
        new = create_model("resnet_tiny", num_classes=3)
        report = adapt(new, of(old, class_names=named_before), class_names=named_now)
        assert_complete(report, old.state_dict(), new)
        return new.head.fc.weight

    names = ("ant", "bee", "cat")
    assert torch.equal(classifier(names, list(names)), old.head.fc.weight)
    assert torch.equal(classifier(None, names), old.head.fc.weight)
    assert torch.equal(classifier(names, None), old.head.fc.weight)
    assert classifier(names, ("bee", "ant", "cat")).eq(0).all()
    assert classifier(names, ("ant", "bee", "cow")).eq(0).all()


def test_a_backbone_gives_and_takes_all_but_the_head() -> None:
    whole = trained("halonet_h4", num_classes=5, **H4)
    pyramid = create_model("halonet_h4", features_only=True, out_indices=(0, 3), **H4).model
    report = adapt(pyramid, of(whole))
    assert_complete(report, whole.state_dict(), pyramid)
    assert {name.split(".")[0] for name in fates(report)["dropped"]} == {"stages", "final", "head"}
    assert not fates(report)["started afresh"]
    images = torch.randn(1, 3, 64, 96)
    kept = pyramid.eval().forward_intermediates(images, indices=[0, 3], intermediates_only=True)
    for feature, same in zip(kept, whole.forward_intermediates(images, indices=[0, 3])[1], strict=True):
        assert torch.equal(feature, same)

    backbone = create_model("halonet_h4", features_only=True, **H4).model
    again = create_model("halonet_h4", num_classes=5, **H4)
    report = adapt(again, of(backbone))
    assert_complete(report, backbone.state_dict(), again)
    assert {name.split(".")[0] for name in fates(report)["started afresh"]} == {"final", "head"}
    assert again.head.fc.weight.eq(0).all()
    assert again.final[0].weight.ne(0).any()

    headless = create_model("halonet_h4", num_classes=0, **H4)
    assert adapt(headless, of(whole)).counts["dropped"] == 2
    assert adapt(again, of(headless)).counts["started afresh"] == 2


def test_counters_of_batches_may_be_missing() -> None:
    old = trained("resnet_tiny", num_classes=3)
    weights = {name: tensor for name, tensor in old.state_dict().items() if "num_batches" not in name}
    new = create_model("resnet_tiny", num_classes=3).eval()
    report = adapt(new, Pretrained(label="a.safetensors", weights=weights))
    assert_complete(report, weights, new)
    images = torch.randn(2, 3, 24, 40)
    assert torch.equal(new(images), old(images))


def test_choices_that_no_tensor_shows_are_reported_once() -> None:
    old = trained("halonet_tiny", num_classes=3, scale=None)
    new = create_model("halonet_tiny", num_classes=3, border="masked", act="silu")
    found = adapt(new, of(old, model=old)).choices
    assert found == ("act relu -> silu", "border zero -> masked", "scale 0.25 -> 1.0")


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (("halonet_tiny", {}), ("gsa_tiny", {}), r"of halonet_tiny, do not fit gsa_tiny: \d+ tensors missing"),
        (("resnet26", {}), ("resnet38", {}), r"6\d tensors missing \(first: stages\.0\.1\.reduce\.weight\)"),
        (("halonet_tiny", {}), ("halonet_tiny", {"heads": (4, 4, 8)}), r"2 tensors of another shape.*table_h is"),
        (("halonet_tiny", {}), ("halonet_tiny", {"relative": "summed"}), "6 tensors of another shape"),
        (("halonet_h3", H4), ("halonet_h4", H4), r"tensors of another shape \(first: stages\.0\.0\.expand\.weight"),
        (("halonet_h0", H4), ("halonet_h0", {**H4, "head_width": 7}), r"5 tensors missing \(first: final\.0\.weight"),
    ],
)
def test_another_architecture_is_refused_whole(before: tuple, after: tuple, sentence: str) -> None:
    (old_name, old_choices), (new_name, new_choices) = before, after
    old = create_model(old_name, num_classes=3, **old_choices)
    new = create_model(new_name, num_classes=3, **new_choices)
    unchanged = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    with pytest.raises(UserError, match=sentence):
        adapt(new, of(old, architecture=old_name))
    assert all(torch.equal(tensor, unchanged[name]) for name, tensor in new.state_dict().items())


def test_whole_numbers_are_no_weights() -> None:
    old = create_model("resnet_tiny", num_classes=3)
    weights = {**old.state_dict(), "stem.0.weight": torch.ones(32, 3, 3, 3, dtype=torch.int8)}
    with pytest.raises(UserError, match="1 tensors of another shape"):
        adapt(old, Pretrained(label="a.safetensors", weights=weights))


def test_weights_in_half_precision_are_taken_up_exactly() -> None:
    old = trained("halonet_tiny", num_classes=3).half()
    new = create_model("halonet_tiny", num_classes=3, block=6)
    adapt(new, of(old))
    assert new.stem[0].weight.dtype == torch.float32
    assert torch.equal(new.stem[0].weight, old.stem[0].weight.float())
    assert torch.equal(
        new.bottlenecks[0].operator.table_h, resized_table(old.bottlenecks[0].operator.table_h.float(), 13)
    )


def test_the_report_is_ready_for_json() -> None:
    old = trained("halonet_tiny", num_classes=3)
    new = create_model("halonet_tiny", num_classes=4, block=6)
    report = adapt(new, of(old, architecture="halonet_tiny", model=old))
    written = json.loads(json.dumps(report.as_dict()))
    assert written["counts"] == report.counts
    assert written["choices"] == ["block 4 -> 6"]
    assert len(written["tensors"]) == len(new.state_dict()) + 2
    assert written["tensors"][0] == {
        "fate": "loaded",
        "how": "",
        "in_weights": {"name": "stem.0.weight", "shape": [32, 3, 3, 3]},
        "in_model": {"name": "stem.0.weight", "shape": [32, 3, 3, 3]},
    }


def of_timm(model: nn.Module) -> Pretrained:
    """The weights of a ResNet of timm, under our names."""
    weights = model.state_dict()
    return Pretrained(
        label="timm:it",
        weights={our_name(name): tensor for name, tensor in weights.items()},
        names={our_name(name): name for name in weights},
        foreign=True,
    )


@pytest.mark.parametrize("name", ["resnet50", "seresnet50"])
def test_resnets_of_timm_are_ours_number_by_number(name: str) -> None:
    theirs = timm.create_model(name, num_classes=7, layers=[1, 2, 1, 1]).eval().double()
    for tensor in (*theirs.parameters(), *theirs.buffers()):
        if tensor.is_floating_point():
            tensor.data += 0.1 * torch.rand_like(tensor)
    ours = plain_resnet(theirs)
    assert isinstance(ours, ResNet)
    report = adapt(ours.eval().double(), of_timm(theirs))
    assert report.counts["loaded"] == len(theirs.state_dict()) == len(ours.state_dict())
    images = torch.randn(2, 3, 65, 97).double()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("theirs", "ours"), [("resnet50", "resnet50"), ("resnet101", "resnet101")])
def test_rows_of_the_catalogue_are_resnets_of_timm(theirs: str, ours: str) -> None:
    with torch.device("meta"):
        twin, row = plain_resnet(timm.create_model(theirs)), create_model(ours)
    assert isinstance(twin, ResNet)
    assert {name: tensor.shape for name, tensor in twin.state_dict().items()} == {
        name: tensor.shape for name, tensor in row.state_dict().items()
    }


def test_attention_starts_afresh_where_a_resnet_of_timm_has_convolutions() -> None:
    theirs = timm.create_model("resnet50", num_classes=7, layers=[2, 2, 2, 2])
    new = create_model("halo_resnet50_se", num_classes=7, blocks=(2, 2, 2, 2))
    report = adapt(new, of_timm(theirs))
    assert_complete(report, theirs.state_dict(), new)
    found = fates(report)
    assert found["dropped"] == {"layer4.0.conv2.weight", "layer4.1.conv2.weight"}
    assert {name.split(".")[3] for name in found["started afresh"]} == {"operator", "se"}
    assert torch.equal(new.stages[2][1].operator.weight, theirs.layer3[1].conv2.weight)
    assert torch.equal(new.stages[3][1].expand.weight, theirs.layer4[1].conv3.weight)
    assert torch.equal(new.head.fc.weight, theirs.fc.weight)


def test_squeeze_and_excitation_of_timm_fits_at_its_own_ratio_only() -> None:
    theirs = timm.create_model("seresnet50", num_classes=7, layers=[1, 1, 1, 1])
    for ratio, kept in ((1 / 16, 16), (1 / 8, 0), (0.0, 0)):
        new = create_model("resnet50_se", num_classes=7, blocks=(1, 1, 1, 1), se_ratio=ratio)
        report = adapt(new, of_timm(theirs))
        assert_complete(report, theirs.state_dict(), new)
        assert sum(".se." in name for name in fates(report)["loaded"]) == kept


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("halonet_h1", "it is a ByobNet, not a ResNet"),
        ("resnet18", "its blocks are no bottlenecks"),
        ("resnetaa50", "it computes with AvgPool2d"),
        ("resnetblur50", "it computes with BlurPool2d"),
        ("resnet50d", "it computes with AvgPool2d"),
        ("resnet50c", r"\d+ layers differ from a plain ResNet's \(first: stem\.0"),
        ("resnext50_32x4d", r"layers differ.*\(first: stages\.0\.0\.reduce"),
        ("resnet50_gn", r"layers differ.*\(first: stem\.1"),
    ],
)
def test_other_models_of_timm_are_refused_with_the_reason(name: str, reason: str) -> None:
    with torch.device("meta"):
        found = plain_resnet(timm.create_model(name))
    assert isinstance(found, str)
    assert re.search(reason, found)
