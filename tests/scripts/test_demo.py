"""The demo ends with a page on which both attention networks look at one photograph."""

import importlib
import json
import re
from pathlib import Path

import pytest

from parhelion.classification.saved import Classifier
from parhelion.data.sources.fashion import CLASS_NAMES
from parhelion.data.transforms import Preprocessing
from parhelion.models import create_model

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.usefixtures("one_thread")
def test_the_last_page_shows_both_attention_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    demo = importlib.import_module("demo")
    arguments = {"num_classes": len(CLASS_NAMES), "in_chans": 1, "image_size": 20}
    for name in demo.ATTENTIVE:
        (tmp_path / name).mkdir()
        Classifier(
            model=create_model(name, **arguments).eval(),
            name=name,
            arguments=arguments,
            class_names=CLASS_NAMES,
            preprocessing=Preprocessing(image_px=20, in_chans=1, mean=(0.25,), std=(0.5,)),
            epoch=4,
            metrics={},
        ).save(tmp_path / name / "weights.safetensors")
    demo.explain(tmp_path)
    assert str(tmp_path / demo.PAGE) in capsys.readouterr().out
    text = (tmp_path / demo.PAGE).read_text(encoding="utf-8")
    models = json.loads(re.search(r'id="models">(.*?)</script>', text)[1])
    assert [model["title"] for model in models] == ["halonet_tiny", "gsa_tiny"]
    assert all(model["rollout"] and model["occlusion"] for model in models)
