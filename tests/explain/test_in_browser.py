"""The page in Chromium: it opens from the disk, asks for nothing, and shows the numbers that Python computes."""

import random
import shutil

import pytest
import torch
from explain.attentive import LAYERS, one_map

import parhelion
from parhelion.explain import attention

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("not checked: there is no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="not checked: pip install playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens maps as a page, which must ask for nothing and complain of nothing until the test ends."""
    heard = []
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))

    def open_page(maps, *others):
        file = tmp_path / "page.html"
        maps.save(file, *others)
        page.goto(file.as_uri())
        page.wait_for_selector(".readout")
        assert heard == [file.as_uri()]
        return page

    yield open_page
    page.close()
    assert len(heard) == 1, heard


def readout(page):
    return page.locator(".readout").first.evaluate("element => ({...element.dataset})")


def middle_of(page, layer, row, col):
    """Where on the screen a pixel of the layer's map of keys is."""
    box = page.locator(".map").first.bounding_box()
    top, left, bottom, right = 0, 0, *layer.size
    if layer.kind == "halo":
        block, halo = layer.window.block, layer.window.halo
        top = left = -halo
        bottom, right = (-(-size // block) * block + halo for size in layer.size)
    return (
        box["x"] + box["width"] * (col - left + 0.5) / (right - left),
        box["y"] + box["height"] * (row - top + 0.5) / (bottom - top),
    )


def check_pixels(page, layer, count):
    """Clicks on queries and points at keys at random; what is read must be what Python computes."""
    chance = random.Random(210312731)
    for _ in range(count):
        row, col = (chance.randrange(size) for size in layer.query_size)
        head, part = chance.randrange(layer.heads), chance.choice(layer.parts)
        page.locator(".heads button").nth(head).click()
        page.locator(".parts button", has_text=part).first.click()
        page.mouse.click(*middle_of(page, layer, row * layer.stride, col * layer.stride))
        if layer.kind == "halo":
            side = layer.window.geometry.side
            a, c = chance.randrange(side), chance.randrange(side)
            top, left = layer.corner(row, col)
            expected = layer.window_weights(row, col, part)[head, a, c]
            key = top + a, left + c
        else:
            key = tuple(chance.randrange(size) for size in layer.size)
            expected = layer.weights(row, col, part)[head][key]
        page.mouse.move(*middle_of(page, layer, *key))
        read = readout(page)
        assert (int(read["queryRow"]), int(read["queryCol"])) == (row, col)
        assert (int(read["row"]), int(read["col"])) == key
        assert float(read["weight"]) == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        if layer.kind == "halo":
            content, position = (logits[head, a, c].item() for logits in layer.logits(row, col))
            assert float(read["content"]) == pytest.approx(content, rel=1e-4, abs=1e-5)
            assert float(read["position"]) == pytest.approx(position, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_a_click_shows_the_numbers_that_python_computes(name, opened):
    maps = attention(LAYERS[name](), one_map())
    check_pixels(opened(maps), maps.layers[0], 10)


def test_every_layer_of_a_network_can_be_chosen_and_sorted(opened):
    model = parhelion.create_model("halonet_tiny", num_classes=3)
    maps = attention(model, torch.randn(3, 50, 41), rollout=True, occlusion=True)
    page = opened(maps)
    for layer in maps.layers:
        page.get_by_role("button", name=layer.name).click()
        check_pixels(page, layer, 2)
    page.get_by_role("button", name="distance, px").click()
    page.get_by_role("button", name="distance, px").click()
    shown = page.locator(".layers tbody tr td:first-child").all_inner_texts()
    means = [summary.distance.mean().item() for summary in maps.summaries]
    ordered = sorted(zip(means, [layer.name for layer in maps.layers], strict=True), reverse=True)
    assert shown in ([name for _, name in ordered], [name for _, name in reversed(ordered)])
    for canvas in page.locator(".tables canvas, .checks canvas").all():
        canvas.hover()
    assert "offset" in page.inner_text(".table-readout")


def test_the_keyboard_does_what_the_mouse_does(opened):
    maps = attention(LAYERS["halo, masked, stride 2"](), one_map())
    (layer,) = maps.layers
    page = opened(maps)
    page.mouse.click(*middle_of(page, layer, 2, 4))
    page.mouse.move(1, 1)
    page.focus(".map")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    before = readout(page)
    assert (before["queryRow"], before["queryCol"]) == ("2", "3")
    inwards = "ArrowUp" if int(before["row"]) > layer.corner(2, 3)[0] else "ArrowDown"
    page.keyboard.press(f"Shift+{inwards}")
    read = readout(page)
    assert abs(int(read["row"]) - int(before["row"])) == 1
    top, left = layer.corner(2, 3)
    expected = layer.window_weights(2, 3)[0, int(read["row"]) - top, int(read["col"]) - left]
    assert float(read["weight"]) == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    # The next head of the same key, by Tab and Enter.
    page.focus(".heads button >> nth=0")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expected = layer.window_weights(2, 3)[1, int(read["row"]) - top, int(read["col"]) - left]
    assert float(readout(page)["weight"]) == pytest.approx(expected.item(), rel=1e-4)


def test_models_side_by_side_follow_each_other(opened):
    first = attention(LAYERS["halo"](), one_map((8, 12)))
    page = opened(first, attention(LAYERS["gsa"](), one_map((4, 6))))
    page.mouse.click(*middle_of(page, first.layers[0], 6, 9))
    second = page.locator(".readout").nth(1).evaluate("element => ({...element.dataset})")
    assert (second["queryRow"], second["queryCol"]) == ("3", "4")
