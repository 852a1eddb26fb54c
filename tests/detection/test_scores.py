"""What a detector finds in a folder of images, how that is scored, and the memory that a large image takes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data.annotated.coco_folders import CATEGORIES, VAL_SIZES, content, opened, val_content, write_coco
from small_detectors import small_detector
from torch import Tensor, nn

from parhelion.data.annotated.coco import CocoImages, DetectionSource
from parhelion.data.annotated.loaders import make_detection_loader
from parhelion.data.annotated.transforms import detection_eval_transform
from parhelion.data.images import BadImage
from parhelion.detection.saved import Detector
from parhelion.detection.scores import Outcome, evaluate, found_in, merged, only, outcome
from parhelion.errors import UserError
from parhelion.files.progress import Progress

NAMES, IDS = tuple(CATEGORIES.values()), tuple(CATEGORIES)
# The image (h, w) of each id; the last has no objects.
SIZES = {**VAL_SIZES, 9: (33, 14)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_coco(tmp_path, val=content(SIZES, val_content()["annotations"]))
    return tmp_path


def images_in(folder: Path, **options: Any) -> CocoImages:
    val = opened(folder, **options).val
    assert val is not None
    return val


@pytest.fixture
def images(folder: Path) -> CocoImages:
    return images_in(folder)


def source(images: CocoImages) -> DetectionSource:
    return DetectionSource("here", None, images, images.class_names, images.category_ids)


def loader(images: CocoImages, *, batch: int = 2, **options: Any) -> Any:
    return make_detection_loader(images, detection_eval_transform(), batch=batch, train=False, **options)


class Oracle(nn.Module):
    """Finds exactly what is annotated, knowing each image by its size; its masks fill their boxes."""

    def __init__(self, images: CocoImages) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.known = {sample[1].size: sample[1] for sample in images}

    def forward(self, batch: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        return [self.found(*image.shape[-2:]) for image in batch]

    def found(self, h: int, w: int) -> dict[str, Tensor]:
        true = self.known[h, w]
        count = len(true.boxes)
        return {
            "boxes": torch.from_numpy(true.boxes),
            "labels": torch.from_numpy(true.labels),
            "scores": torch.ones(count),
            "masks": torch.ones(count, 28, 28),
        }


def detector_of(images: CocoImages, model: nn.Module) -> Detector:
    return replace(small_detector(class_names=images.class_names), model=model, category_ids=images.category_ids)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_what_is_found_stands_under_the_ids_of_images_and_categories(images: CocoImages, batch: int) -> None:
    found = outcome(Oracle(images), loader(images, batch=batch), images.category_ids)
    assert found.image_ids == [2, 4, 9]
    assert found.skipped == []
    assert [(entry["image_id"], entry["category_id"], entry["bbox"]) for entry in found.entries] == [
        (2, 90, [3, 4, 30, 11]),
        (4, 3, [1, 6, 17, 19]),
    ]
    for entry in found.entries:
        assert entry["segmentation"]["size"] == list(SIZES[entry["image_id"]])
    scores = found.scores(images, masks=True)
    assert scores.box["ap"] == scores.mask["ap50"] == 1.0


def test_a_network_finds_nothing_but_known_categories_within_the_images(images: CocoImages) -> None:
    detector = detector_of(images, small_detector(class_names=NAMES).model)
    found = evaluate(detector, source(images), batch=2, quiet=True)
    assert found.image_ids == [2, 4, 9]
    assert {entry["image_id"] for entry in found.entries} == {2, 4, 9}
    assert {entry["category_id"] for entry in found.entries} <= set(IDS)
    for entry in found.entries:
        (left, top, width, height), (h, w) = entry["bbox"], SIZES[entry["image_id"]]
        assert min(left, top, width, height) >= 0
        assert left + width <= w * (1 + 1e-6)
        assert top + height <= h * (1 + 1e-6)
    assert 0 <= found.scores(images, masks=True).metrics()["mask_ap"] < 1


def test_a_faster_rcnn_has_results_without_segmentation(images: CocoImages) -> None:
    model = small_detector(class_names=NAMES, kind="faster_rcnn").model
    found = outcome(model, loader(images), IDS)
    assert found.image_ids == [2, 4, 9]
    assert found.entries
    assert not any("segmentation" in entry for entry in found.entries)


@pytest.fixture
def bad_image(folder: Path) -> Path:
    """The file of image 4, cut off."""
    file = folder / "val2017" / f"{4:012}.png"
    file.write_bytes(file.read_bytes()[:500])
    return file


@pytest.mark.parametrize("batch", [1, 3])
def test_an_unreadable_image_is_skipped_with_a_sentence(images: CocoImages, bad_image: Path, batch: int) -> None:
    detector = detector_of(images, Oracle(images))
    found = evaluate(detector, source(images), batch=batch, on_bad_image="skip", quiet=True)
    assert found.image_ids == [2, 9]
    assert {entry["image_id"] for entry in found.entries} == {2}
    (sentence,) = found.skipped
    assert str(bad_image) in sentence
    assert "\n" not in sentence
    # The object in the image that nobody looked at was not missed.
    scores = found.scores(images, masks=True)
    assert scores.box["ap"] == scores.mask["ap50"] == 1.0


def test_an_unreadable_image_is_refused_unless_it_may_be_skipped(images: CocoImages, bad_image: Path) -> None:
    detector = detector_of(images, Oracle(images))
    with pytest.raises(BadImage, match=bad_image.name):
        evaluate(detector, source(images), batch=3, quiet=True)
    with pytest.raises(UserError, match="on_bad_image is 'ignore'"):
        evaluate(detector, source(images), batch=3, on_bad_image="ignore", quiet=True)


def test_what_nobody_found_in_an_image_that_was_looked_at_counts(images: CocoImages) -> None:
    found = outcome(Oracle(images), loader(images), images.category_ids)
    entries = [entry for entry in found.entries if entry["image_id"] == 2]
    for image_ids, ap in (([2, 9], 1.0), ([2, 4, 9], 0.5)):
        scores = Outcome(entries=entries, image_ids=image_ids).scores(images, masks=False)
        assert scores.box["ap"] == pytest.approx(ap)
        assert scores.mask is None


def test_without_an_annotated_image_there_is_nothing_to_score(images: CocoImages) -> None:
    with pytest.raises(UserError, match="annot"):
        Outcome(image_ids=[9]).scores(images, masks=True)


def test_only_keeps_the_truth_of_some_images(images: CocoImages) -> None:
    truth = images.ground_truth()
    kept = only(truth, [4, 9])
    assert [image["id"] for image in kept["images"]] == [4, 9]
    assert [entry["image_id"] for entry in kept["annotations"]] == [4]
    assert kept["categories"] == truth["categories"]
    assert len(truth["images"]) == 3


def test_other_classes_than_those_it_was_trained_for_are_refused(images: CocoImages) -> None:
    oracle = Oracle(images)
    detector = replace(detector_of(images, oracle), class_names=("cup", "jug", "spoon"))
    with pytest.raises(UserError, match="class 1 of the checkpoint is 'jug', but in here it is 'spoon'"):
        evaluate(detector, source(images), batch=2, quiet=True)
    with pytest.raises(UserError, match="the checkpoint knows 2 classes, but here has 3"):
        evaluate(replace(detector, class_names=NAMES[:2]), source(images), batch=2, quiet=True)


def test_the_categories_are_those_of_the_images_not_of_the_training(images: CocoImages) -> None:
    detector = replace(detector_of(images, Oracle(images)), category_ids=(1, 2, 5))
    found = evaluate(detector, source(images), batch=2, quiet=True)
    assert [entry["category_id"] for entry in found.entries] == [90, 3]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_also_when_it_fails(images: CocoImages, training: bool) -> None:
    oracle = Oracle(images).train(training)
    assert [len(found) for batch in found_in(oracle, loader(images)) for found in batch] == [1, 1, 0]
    assert oracle.training == training
    oracle.known = {}
    with pytest.raises(KeyError):
        list(found_in(oracle, loader(images)))
    assert oracle.training == training


def test_found_things_are_plain_tensors_on_the_cpu_with_the_size_of_the_image(images: CocoImages) -> None:
    model = small_detector(class_names=NAMES).model
    found = [one for batch in found_in(model, loader(images)) for one in batch]
    assert [(one.image_id, one.size) for one in found] == list(SIZES.items())
    assert all(one.masks.shape == (len(one), 28, 28) for one in found)
    assert all(not one.boxes.requires_grad for one in found)


def test_a_batch_whose_images_are_all_bad_is_passed_over() -> None:
    model = small_detector().model
    batches = [{"image": [], "target": [], "bad": ["a.png is no image"]}]
    found = outcome(model, batches, IDS)
    assert found == Outcome(skipped=["a.png is no image"])


def test_progress_hears_of_every_image(images: CocoImages) -> None:
    class Counted(Progress):
        heard: list[int]

        def advance(self, images: int) -> None:
            self.heard.append(images)

    progress = Counted(3, quiet=True)
    progress.heard = []
    outcome(Oracle(images), loader(images), IDS, progress)
    assert progress.heard == [2, 1]


def test_outcomes_of_several_processes_become_one() -> None:
    parts = [
        Outcome(entries=[{"image_id": 3, "score": 0.5}, {"image_id": 3, "score": 0.25}], image_ids=[3], skipped=["b"]),
        Outcome(),
        Outcome(entries=[{"image_id": 1, "score": 0.75}], image_ids=[1, 4], skipped=["d"]),
    ]
    together = merged(parts)
    # The order of the images' ids, in each image the order in which the process found them.
    assert [(entry["image_id"], entry["score"]) for entry in together.entries] == [(1, 0.75), (3, 0.5), (3, 0.25)]
    assert (together.image_ids, together.skipped) == ([3, 1, 4], ["b", "d"])
    assert len(parts[0].entries) == 2


PHOTOGRAPH = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from PIL import Image
from parhelion.detection import mask_rcnn
from parhelion.detection.plots import draw_found
from parhelion.detection.predict import predictions
from parhelion.detection.saved import Detector

torch.manual_seed(5)
torch.set_num_threads(1)
settings = {"choices": {"stem": "conv7"}, "widths": (8, 16, 8), "box_score_thresh": 0.0, "box_nms_thresh": 1.0}
model = mask_rcnn("resnet_tiny", 3, image_px=1024, **settings).eval()
names = ("cup", "spoon", "jug")
arguments = {"kind": "mask_rcnn", "backbone": "resnet_tiny", "in_chans": 3}
detector = Detector(model=model, arguments=arguments, class_names=names, category_ids=(3, 7, 90), metrics={})
path = Path(sys.argv[1])
Image.radial_gradient("L").resize((4000, 3000)).convert("RGB").save(path)
(one,) = predictions(detector, [path], min_score=0.0)
entries = one.found.results(detector.category_ids)
assert one.found.size == (3000, 4000) and one.found.masks.shape == (100, 28, 28)
assert len(entries) == 100 and all(entry["segmentation"]["size"] == [3000, 4000] for entry in entries)
assert draw_found(one.image, one.found, names, min_score=0.0, top=100).size == (4000, 3000)
# As large as an instance can be.
huge = replace(one.found.best(3), boxes=torch.tensor([[0.0, 0.0, 4000.0, 3000.0]]).expand(3, 4))
assert len(huge.results(detector.category_ids)) == 3
draw_found(one.image, huge, names, min_score=0.0)
# Unlike the resource module's, this does not begin with the memory of the process that started this one.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""
DENSE_BYTES = 100 * 3000 * 4000 * 4


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_a_hundred_masks_of_a_large_photograph_take_little_memory(tmp_path: Path) -> None:
    """From the image file to the picture and COCO's results; dense masks alone would be 4.8 GB."""
    command = [sys.executable, "-c", PHOTOGRAPH, str(tmp_path / "photograph.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < DENSE_BYTES / 2
