"""What the pictures of spectra show, as numbers: histograms over one set of bins, and mean sorted spectra.

Bins are equal on a logarithmic axis, for singular values span decades, and the same for all models of a panel. The
lowest bin also holds everything below DECADES decades under the largest value: a change of rank r has min(m, n) - r
values that are nothing but rounding, and where exactly they lie says nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Model = Mapping[str, Any]
KINDS = {"weight": "W", "change": "W − W_reference"}
NUM_BINS, DECADES, MOST_POINTS = 40, 4.0, 256


def types_in(models: Sequence[Model], kind: str) -> list[str]:
    """The layer types that have a spectrum of this kind, in the order of the models' layers."""
    return list(dict.fromkeys(layer["type"] for model in models for layer in model["layers"] if layer[kind]))


def values_of(model: Model, kind: str, type: str) -> list[list[float]]:
    """The singular values of each layer of a type, descending."""
    found = [layer[kind] for layer in model["layers"] if layer["type"] == type]
    return [one["singular_values"] for one in found if one is not None]


def bin_edges(models: Sequence[Model], kind: str, type: str) -> np.ndarray:
    """(NUM_BINS + 1,) ascending edges for all models together; empty where every value is zero."""
    lists = [values for model in models for values in values_of(model, kind, type)]
    together = np.concatenate([np.asarray(values) for values in lists]) if lists else np.zeros(0)
    positive = together[together > 0]
    if not len(positive):
        return np.zeros(0)
    largest = float(positive.max()) * 1.0001
    lowest = max(float(positive.min()) * 0.9999, largest * 10**-DECADES)
    return np.geomspace(lowest, largest, NUM_BINS + 1)


def histogram(model: Model, kind: str, type: str, edges: np.ndarray) -> np.ndarray:
    """(NUM_BINS,) percent of the singular values of all layers of a type; those below the edges count in the first."""
    values = np.concatenate([np.asarray(one) for one in values_of(model, kind, type)])
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return np.asarray(100.0 * counts / max(1, len(values)))


def mean_spectrum(model: Model, kind: str, type: str) -> tuple[np.ndarray, np.ndarray]:
    """(k, sigma_k): the k-th largest singular value, k from 1, geometric mean over layers, at MOST_POINTS places.

    A layer that is zero, such as a change that did not happen, would make every mean zero; it counts where all are.
    """
    every = values_of(model, kind, type)
    lists = [values for values in every if values[0] > 0] or every
    length = min(map(len, lists))
    values = np.array([one[:length] for one in lists])
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(values).mean(axis=0))
    places = np.unique(np.linspace(0, length - 1, min(length, MOST_POINTS)).round().astype(int))
    return places + 1, mean[places]
