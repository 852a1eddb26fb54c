"""COCO's numbers as the original program computes them."""

import contextlib
import copy
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

PRECISIONS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
RECALLS = ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
TWELVE = PRECISIONS + RECALLS


def pycocotools_numbers(ground_truth, results, kind):
    """COCO's twelve numbers from the original program, -1 where there is no instance."""
    evaluation = _evaluation(ground_truth, results, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return dict(zip(TWELVE, evaluation.stats.tolist(), strict=True))


def pycocotools_ap(ground_truth, results, kind, most):
    """COCO's first number where `most` detections of each class count in an image."""
    precision = _evaluation(ground_truth, results, kind, [1, 10, most]).eval["precision"][..., 0, -1]
    return float(precision[precision > -1].mean())


def _evaluation(ground_truth, results, kind, limits=(1, 10, 100)):
    unused = {"bbox": "segmentation", "segm": "bbox"}[kind]
    results = [{key: value for key, value in entry.items() if key != unused} for entry in copy.deepcopy(results)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
