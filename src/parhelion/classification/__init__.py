"""Image classification: recipe, task, saved classifiers, scores, prediction, plots."""
