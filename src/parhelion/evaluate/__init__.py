"""Evaluation: scores of a model, saved classifiers, predictions and their pictures."""
