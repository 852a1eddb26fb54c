import json
from dataclasses import fields, replace

import pytest
from runs.colour_folders import quick_recipe
from runs.tiny_scenes import quick_detector

from parhelion.errors import UserError
from parhelion.classification.recipe import ClassificationRecipe
from parhelion.detection.recipe import DetectionRecipe
from parhelion.recipes.table import RECIPES, recipe

WRONG = [
    ("epochs", 0),
    ("batch", 0),
    ("lr_per_256", 0.0),
    ("lr_per_256", float("nan")),
    ("warmup_epochs", 2.0),
    ("warmup_epochs", -1.0),
    ("lr_end_ratio", 1.5),
    ("momentum", 1.0),
    ("weight_decay", -0.1),
    ("clip_norm", float("nan")),
    ("label_smoothing", 1.0),
    ("drop_path", 1.0),
    ("dropout", -0.5),
    ("class_weights", "inverse"),
    ("sampling", "random"),
    ("image_px", 0),
    ("in_chans", 2),
    ("mean", (0.5, 0.5)),
    ("std", (0.0,)),
    ("std", ()),
    ("eval_crop_ratio", 0.0),
    ("interpolation", "cubic"),
    ("crop", "centre"),
    ("crop_scale", (0.5, 1.0)),
    ("flip", 1.5),
    ("randaugment", 32),
    ("erase", -1.0),
    ("color_jitter", -1.0),
    ("workers", -1),
    ("seed", -1),
    ("optimizer", "adam"),
    ("precision", "fp8"),
    ("on_bad_image", "ignore"),
    ("model", None),
    ("epochs", "three"),
    ("batch", 2.5),
    ("flip", True),
    ("mixup", float("inf")),
    ("mean", (float("inf"),)),
    ("choices", ("halo",)),
    ("choices", ("halo=1", "halo=2")),
    ("drop_updates", (3,)),
]
WRONG_DETECTORS = [
    ("masks", 1),
    ("norm", "group"),
    ("fpn_width", 0),
    ("box_width", 0),
    ("mask_width", 0),
    ("proposals", 0),
    ("sampled_boxes", 0),
    ("min_score", 1.0),
    ("min_score", -0.1),
    ("max_found", 0),
    ("jitter", (1.5, 0.5)),
    ("jitter", (0.0, 1.0)),
    ("jitter", (1.0,)),
    ("jitter", (0.5, 1.0, 1.5)),
    ("flip", 1.5),
    ("color_jitter", -1.0),
    ("mean", (0.5, 0.5)),
    ("std", (0.0,)),
    ("std", ()),
    ("on_bad_annotation", "skip"),
    ("image_px", 0),
    ("in_chans", 2),
    ("epochs", 0),
    ("batch", 2.5),
    ("precision", "fp8"),
    ("choices", ("halo",)),
]
DROPS = [(0, 3), (5, 3), (3, 3), (-1,), (2.5,)]
# Any model may be fine-tuned, and the hybrids are no longer what their row is called.
OTHER_NAMES = {
    "finetune": "finetune",
    "mask_rcnn_finetune": "mask_rcnn_finetune",
    "hybrid_tiny": "hybrid",
    "mask_rcnn_hybrid_tiny": "mask_rcnn_hybrid",
}


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_value_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        quick_recipe(**{field: value}).check()


@pytest.mark.parametrize(("field", "value"), WRONG_DETECTORS)
def test_a_detectors_value_that_cannot_be_is_refused_by_name(field, value):
    quick_detector().check()
    with pytest.raises(UserError, match=rf"^{field} "):
        quick_detector(**{field: value}).check()


@pytest.mark.parametrize("quick", [quick_recipe, quick_detector])
@pytest.mark.parametrize("drops", DROPS)
def test_updates_to_drop_after_must_rise_from_above_0(quick, drops):
    quick(schedule="step", drop_updates=(3, 5)).check()
    with pytest.raises(UserError, match=r"^drop_updates is "):
        quick(schedule="step", drop_updates=drops).check()


@pytest.mark.parametrize(
    "steps",
    [
        {"schedule": "step"},
        {"schedule": "step", "step_updates": 2, "drop_updates": (3,)},
        {"step_updates": 2},
        {"drop_updates": (3,)},
    ],
)
def test_the_step_schedule_alone_takes_steps_and_one_kind_of_them(steps):
    with pytest.raises(UserError, match="the schedule step needs one of the two, and no other takes them"):
        quick_detector(**steps).check()


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ({"drop_updates": (2, 5)}, None),
        ({"drop_updates": (2, 6, 9)}, "drop_updates is 6, 9, but"),
        ({"step_updates": 5}, None),
        ({"step_updates": 6}, "step_updates is 6, but"),
    ],
)
def test_what_the_rate_should_do_after_the_end_is_told(steps, told):
    found = quick_recipe(schedule="step", **steps)
    found.check()
    rest = "the run ends after 6 updates: the learning rate does not fall there"
    assert found.never_reached(6) == ([f"{told} {rest}"] if told else [])
    assert quick_recipe().never_reached(1) == []


@pytest.mark.parametrize(
    ("decay", "updates", "fitting"),
    [
        (0.0, 1, None),
        (0.9, 2, None),
        (0.99, 32, None),  # 10 of 100
        (0.99, 31, "0.9, over 10"),
        (0.9999, 30, "0.9, over 10"),
        (0.9999, 5_000, "0.997, over 333"),
        (0.9999, 31_623, None),  # 1,000 of 10,000
    ],
)
@pytest.mark.parametrize("quick", [quick_recipe, quick_detector])
def test_an_average_far_longer_than_the_run_is_told(quick, decay, updates, fitting):
    found = quick(ema_decay=decay).never_reached(updates)
    if fitting is None:
        assert found == []
    else:
        (sentence,) = found
        assert sentence.startswith(f"ema_decay is {decay}, an average over {1 / (1 - decay):.0f} updates, but")
        assert sentence.endswith(f"ends after {updates} updates; ema_decay {fitting}, acts in full there")


def test_rare_classes_are_favoured_in_one_way_only():
    quick_recipe(class_weights="balanced").check()
    quick_recipe(sampling="balanced").check()
    with pytest.raises(UserError, match="class_weights and sampling are both balanced, which favours"):
        quick_recipe(class_weights="balanced", sampling="balanced").check()


@pytest.mark.parametrize("kind", [ClassificationRecipe, DetectionRecipe])
def test_every_rule_is_about_a_field(kind):
    assert set(kind.rules) <= {field.name for field in fields(kind)}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_sound_bears_its_models_name_and_survives_json(name):
    found = recipe(name)
    found.check()
    kind = "mask_rcnn_" if found.task == "detection" else ""
    assert name.replace("resnet_50", "resnet50").startswith(OTHER_NAMES.get(name, f"{kind}{found.model}"))
    read = json.loads(json.dumps(found.as_dict()))
    # Folders of classification were written before there was another task.
    assert read.pop("task", "classification") == found.task
    assert type(found).from_dict(read) == found


def test_the_small_recipes_differ_in_the_model_only():
    halo, gsa, convolution = (recipe(name) for name in ("halonet_tiny", "gsa_tiny", "resnet_tiny"))
    assert replace(gsa, model=halo.model) == halo == replace(convolution, model=halo.model)
    halo, gsa, convolution = (recipe(f"mask_rcnn_{name}") for name in ("halonet_tiny", "gsa_tiny", "resnet_tiny"))
    assert replace(gsa, model=halo.model) == halo == replace(convolution, model=halo.model)


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(UserError, match="no recipe 'halonet_tyni'; did you mean halonet_tiny"):
        recipe("halonet_tyni")


def test_one_mean_serves_every_channel():
    assert quick_recipe(mean=(0.25,), in_chans=3).preprocessing().mean == (0.25, 0.25, 0.25)
    assert quick_recipe(mean=(0.1, 0.2, 0.3), in_chans=3).preprocessing().mean == (0.1, 0.2, 0.3)
