import json
import sys

import pytest

from parhelion.cli import main
from parhelion.recipes.table import RECIPES, recipe


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main(["recipes", *arguments]) == 0
    return capsys.readouterr().out


def test_every_recipe_is_listed_with_cost_result_and_source(capsys):
    lines = [line.split("\t") for line in printed(capsys).splitlines()]
    assert [line[0] for line in lines] == list(RECIPES)
    assert {len(line) for line in lines} == {5}
    h0 = next(line for line in lines if line[0] == "halonet_h0_imagenet")
    # 350 times 1,281,167 images, and 3 times 2,283,464,704 multiply-adds for each.
    assert h0[1:] == ["4.5e+08", "3.1e+18", "-", "arXiv 2103.12731"]
    gsa = next(line for line in lines if line[0] == "gsa_resnet50_cifar100")
    assert gsa[1:4] == ["1.3e+06", "1.4e+16", "2.7 points above resnet50_cifar100 (recalled)"]


def test_a_pattern_chooses(capsys):
    lines = printed(capsys, "halonet_h7_conv*").splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        "halonet_h7_conv1_imagenet",
        "halonet_h7_conv12_imagenet",
        "halonet_h7_conv123_imagenet",
    ]


def test_one_recipe_is_shown_with_its_command_its_text_and_every_field(capsys):
    text = printed(capsys, "halonet_h4_base128_finetune_512")
    assert text.startswith(RECIPES["halonet_h4_base128_finetune_512"].text)
    assert "--init-from runs/halonet_h4_base128_imagenet21k" in text
    assert "our reading" in text
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  "))
    assert list(fields) == list(recipe("halonet_h4_base128_finetune_512").as_dict())
    assert json.loads(fields["choices"]) == ["block=16", "halo=1"]


def test_json_has_exact_costs_and_the_resolved_recipe(capsys):
    (row,) = json.loads(printed(capsys, "gsa_resnet50_cifar100", "--json"))
    assert row["images"] == 10_000 * 128
    assert row["multiply_adds"] == row["images"] * row["multiply_adds_per_image"] == 1_280_000 * 3 * 3_585_216_512
    assert row["recipe"] == json.loads(json.dumps(recipe("gsa_resnet50_cifar100").as_dict()))
    (own,) = json.loads(printed(capsys, "finetune", "--json"))
    assert own["images"] is own["multiply_adds"] is None
    assert own["multiply_adds_per_image"] == 3 * 2_910_900_224


def test_on_a_terminal_recipes_are_a_table_that_explains_its_tags(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    table = printed(capsys, "gsa_resnet*_imagenet")
    assert "multiply-adds" in table
    assert "recalled: recalled from the paper's body" in " ".join(table.split())
    assert "cited:" not in table


@pytest.mark.parametrize("pattern", ["halonet_h9_imagenet", "halonet_h9*"])
def test_a_pattern_that_fits_nothing_offers_the_nearest(capsys, pattern):
    assert main(["recipes", pattern]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"parhelion: no recipe is called {pattern!r}; did you mean halonet_")
    assert said.count("\n") == 1


def test_the_help_says_what_the_numbers_mean(capsys):
    text = printed(capsys, "--help")
    assert "forward and backward" in text
    assert "recalled" in text


def test_the_help_of_train_lists_every_recipe_with_its_headline(capsys):
    assert main(["train", "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(entry.name in listed and entry.headline in listed for entry in RECIPES.values())
