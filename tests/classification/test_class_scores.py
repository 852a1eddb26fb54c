import json

import pytest
import torch

from parhelion.classification.class_scores import CLASSES_SHOWN, CLASSES_WITH_MATRIX, class_scores
from parhelion.classification.scores import Outcome

NAMES = ("ant", "long-horned bee", "cat", "dog", "eel")
# Rows are true classes: two of the three ants are taken for bees; nothing is taken for cats; no image is a dog.
CONFUSION = torch.tensor([[1, 2, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 0, 2, 3], [0, 0, 0, 0, 0], [1, 0, 0, 0, 6]])


def seen(confusion):
    """What was said of each image where `confusion` has the counts."""
    pairs = confusion.nonzero().repeat_interleave(confusion[confusion > 0], dim=0)
    target, top = pairs[torch.randperm(len(pairs))].unbind(1)
    return Outcome(top=top[:, None], probability=torch.ones(len(top), 1), target=target, loss=torch.zeros(len(top)))


def test_scores_are_those_of_hand_counted_images():
    ant, bee, cat, dog, eel = class_scores(seen(CONFUSION), NAMES).scores
    assert (ant.precision, ant.recall, ant.images) == (1 / 2, 1 / 3, 3)
    assert ant.f1 == pytest.approx(2 / (2 + 3))
    assert (bee.precision, bee.recall, bee.f1) == pytest.approx((4 / 6, 1, 0.8))
    assert (cat.precision, cat.recall, cat.f1) == (None, 0, 0)
    assert (dog.precision, dog.recall, dog.f1, dog.images) == (0, None, 0, 0)
    assert [score.mistaken for score in (ant, bee, cat, eel)] == [("long-horned bee", 2), None, ("eel", 3), ("ant", 1)]
    means = class_scores(seen(CONFUSION), NAMES).means()
    assert means["mean_recall"] == pytest.approx((1 / 3 + 1 + 0 + 6 / 7) / 4)
    assert means["mean_precision"] == pytest.approx((1 / 2 + 4 / 6 + 0 + 6 / 9) / 4)
    assert means["mean_f1"] == pytest.approx((0.4 + 0.8 + 0 + 0 + 12 / 16) / 5)


def test_they_survive_json_also_where_two_classes_share_a_name():
    found = json.loads(json.dumps(class_scores(seen(CONFUSION), ("crane", *NAMES[1:4], "crane")).as_dict()))
    assert [row["class"] for row in found["classes"]] == ["crane", *NAMES[1:4], "crane"]
    assert [row["images"] for row in found["classes"]] == [3, 4, 5, 0, 7]
    assert found["classes"][3]["recall"] is None
    assert found["confusion"] == CONFUSION.tolist()


def test_the_table_has_a_line_for_each_class_and_the_matrix_below():
    lines = class_scores(seen(CONFUSION), NAMES).text().splitlines()
    assert lines[0].split() == ["class", "precision", "recall", "F1", "images", "most", "often", "taken", "for"]
    assert lines[1].split() == ["ant", "50.00%", "33.33%", "40.00%", "3", "long-horned", "bee", "(2)"]
    assert lines[3].split() == ["cat", "-", "0.00%", "0.00%", "5", "eel", "(3)"]
    assert lines[6].startswith("mean of the classes")
    assert lines[6].split()[-1] == "19"
    assert lines[8].split()[-5:] == ["1", "2", "3", "4", "5"]
    assert lines[10].split() == ["2", "long-horned", "bee", "0", "4", "0", "0", "0"]
    # Columns stand below each other.
    assert len({len(line) for line in lines[8:]}) == 1


def test_of_many_classes_the_worst_are_shown():
    confusion = 5 * torch.eye(CLASSES_SHOWN + 3, dtype=torch.int64)
    confusion[7, 7], confusion[7, 8] = 1, 4
    lines = class_scores(seen(confusion), [f"class {n}" for n in range(len(confusion))]).text().splitlines()
    assert lines[0] == f"the {CLASSES_SHOWN} of {CLASSES_SHOWN + 3} classes with the lowest F1; --json has all"
    assert [line.split()[1] for line in lines[2:5]] == ["7", "8", "0"]
    assert len(lines) == 2 + CLASSES_SHOWN + 1


def test_of_very_many_classes_there_is_no_matrix():
    count = CLASSES_WITH_MATRIX + 1
    outcome = Outcome(
        top=torch.tensor([[7], [8]]), probability=torch.ones(2, 1), target=torch.tensor([7, 7]), loss=torch.zeros(2)
    )
    found = class_scores(outcome, [str(number) for number in range(count)])
    assert (len(found.scores), found.confusion) == (count, None)
    assert (found.scores[7].recall, found.scores[7].mistaken) == (0.5, ("8", 1))
    assert found.text().splitlines()[2].split()[0] == "8"
