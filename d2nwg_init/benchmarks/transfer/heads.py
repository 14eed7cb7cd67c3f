"""Heads for a few images a class, beside the ridge head: what a practitioner would take from scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import torch

Head = tuple[torch.Tensor, torch.Tensor]  # weight [K, d] and bias [K]


def nearest_class_mean_head(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> Head:
    """The linear form of the nearest centroid by Euclidean distance: argmax of x.m - |m|^2 / 2 (logits up to a scale,
    that of the features). A class without images is never predicted."""
    counts = torch.bincount(labels, minlength=num_classes)
    sums = torch.zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    means = sums / counts.clamp_min(1)[:, None]
    bias = (-means.square().sum(1) / 2).masked_fill(counts == 0, -torch.finfo(torch.float32).max / 1e6)
    return means, bias


def logistic_head(features: torch.Tensor, labels: torch.Tensor, num_classes: int, c: float) -> Head:
    """scikit-learn's logistic regression with the penalty 1 / `c`, on features standardised over these images."""
    from sklearn.linear_model import LogisticRegression

    mean, std = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # one image a class is meant so
        model = LogisticRegression(C=c, max_iter=1000).fit(((features - mean) / std).numpy(), labels.numpy())
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row for two classes
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    weight = torch.zeros(num_classes, features.shape[1])
    bias = torch.full((num_classes,), -torch.finfo(torch.float32).max / 1e6)
    seen = torch.from_numpy(model.classes_)
    weight[seen] = torch.from_numpy(coefficients).float() / std
    bias[seen] = torch.from_numpy(intercepts).float() - weight[seen] @ mean
    return weight, bias
