import json
from dataclasses import fields, replace

import pytest
from recipes.colour_folders import quick_recipe

from parhelion.errors import UserError
from parhelion.recipes.classification_recipe import ClassificationRecipe
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
]
# Any model may be fine-tuned, and the hybrid is no longer what its row is called.
OTHER_NAMES = {"finetune": "finetune", "hybrid_tiny": "hybrid"}


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_value_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        quick_recipe(**{field: value}).check()


def test_every_rule_is_about_a_field():
    assert set(ClassificationRecipe.rules) <= {field.name for field in fields(ClassificationRecipe)}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_sound_bears_its_models_name_and_survives_json(name):
    found = recipe(name)
    found.check()
    assert name.replace("resnet_50", "resnet50").startswith(OTHER_NAMES.get(name, found.model))
    assert json.loads(json.dumps(found.as_dict())) == {
        key: list(value) if isinstance(value, tuple) else value for key, value in found.as_dict().items()
    }


def test_the_small_recipes_differ_in_the_model_only():
    halo, gsa, convolution = (recipe(name) for name in ("halonet_tiny", "gsa_tiny", "resnet_tiny"))
    assert replace(gsa, model=halo.model) == halo == replace(convolution, model=halo.model)


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(UserError, match="no recipe 'halonet_tyni'; did you mean halonet_tiny"):
        recipe("halonet_tyni")


def test_one_mean_serves_every_channel():
    assert quick_recipe(mean=(0.25,), in_chans=3).preprocessing().mean == (0.25, 0.25, 0.25)
    assert quick_recipe(mean=(0.1, 0.2, 0.3), in_chans=3).preprocessing().mean == (0.1, 0.2, 0.3)
