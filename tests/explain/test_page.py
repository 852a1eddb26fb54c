"""The page holds all that it needs, says what it rounds, and writes names as text."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from explain.attentive import LAYERS, one_map
from PIL import Image

import parhelion
from parhelion.errors import UserError
from parhelion.explain import attention, page
from parhelion.explain.sheet import draw_sheet, evenly

pytestmark = pytest.mark.usefixtures("one_thread")


class Scripts(HTMLParser):
    """The content of scripts by id, and every address that a page names."""

    def __init__(self, text):
        super().__init__()
        self.content, self.addresses, self.inside = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ("src", "href", "action") if name in attributes]
        if tag == "script":
            self.inside = attributes.get("id", "program")

    def handle_endtag(self, tag):
        self.inside = None if tag == "script" else self.inside

    def handle_data(self, data):
        if self.inside:
            self.content[self.inside] = self.content.get(self.inside, "") + data


@pytest.fixture(scope="module")
def maps():
    torch.manual_seed(20103019)
    model = parhelion.create_model("halonet_tiny", num_classes=2)
    return attention(model, torch.randn(3, 35, 44), class_names=("</script><b>", "Größe"), rollout=True, occlusion=True)


def test_the_page_names_no_other_file(maps):
    found = Scripts(maps.page())
    assert found.addresses == []
    assert "default-src 'none'" in maps.page()
    assert not re.search(r"https?://", maps.page())


def test_names_are_text_and_never_code(maps):
    found = Scripts(maps.page())
    (model,) = json.loads(found.content["models"])
    assert {name for name, _ in model["top"]} == {"</script><b>", "Größe"}
    assert "innerHTML" not in found.content["program"]
    assert model["picture"].startswith("data:image/png;base64,")
    assert np.array(model["rollout"]).sum() == pytest.approx(1, rel=1e-3)
    assert model["occlusion"]["class"] == maps.top[0][0]


def test_numbers_that_take_much_space_are_rounded_and_the_page_says_how_much(maps, monkeypatch):
    exact = Scripts(maps.page())
    assert json.loads(exact.content["models"])[0]["rounding"] == 0
    monkeypatch.setattr(page, "EXACT_BYTES", 0)
    rounded = Scripts(maps.page())
    assert 0 < json.loads(rounded.content["models"])[0]["rounding"] < 1e-3
    assert len(rounded.content["numbers0"]) == pytest.approx(len(exact.content["numbers0"]) / 2, rel=0.01)


@pytest.mark.parametrize("name", LAYERS)
def test_sixteen_bits_change_no_weight_that_one_sees(name):
    (layer,) = attention(LAYERS[name](), one_map()).layers
    assert 0 < page._rounding(layer) < 1e-3


def test_several_models_share_a_page_and_a_notebook_shows_it(maps, tmp_path):
    other = attention(parhelion.create_model("gsa_tiny", num_classes=2), torch.randn(3, 32, 32), title="the other")
    maps.save(tmp_path / "both.html", other)
    found = Scripts((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert [model["title"] for model in json.loads(found.content["models"])] == ["ResNet", "the other"]
    frame = maps._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "<script>" not in frame
    with pytest.raises(UserError, match="cannot write"):
        maps.save(tmp_path / "nowhere" / "page.html")


def test_the_sheet_has_a_row_for_each_layer(maps, tmp_path):
    draw_sheet(maps, tmp_path / "sheet.png", pixel=(34, 43))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 300
    with pytest.raises(UserError, match="the pixel 35 0 is not in the image as the network sees it, which is 35 x 44"):
        draw_sheet(maps, tmp_path / "none.png", pixel=(35, 0))
    assert not (tmp_path / "none.png").exists()
    assert evenly(range(16), 6) == [0, 3, 6, 9, 12, 15]


def test_a_grey_image_stays_grey(tmp_path):
    model = parhelion.create_model("gsa_tiny", num_classes=2, in_chans=1, image_size=28)
    maps = attention(model, Image.new("L", (28, 28), 128))
    assert maps.picture.mode == "L"
    assert np.ptp(np.asarray(maps.picture)) == 0
    draw_sheet(maps, tmp_path / "grey.svg")
    assert (tmp_path / "grey.svg").read_text().count("<image") == 3 * 2 * 5 - 3
