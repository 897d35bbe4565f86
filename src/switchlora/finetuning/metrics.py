"""GLUE's official metrics, by scikit-learn and scipy; in percent, as GLUE's tables have them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from switchlora.errors import UserError, way_to_install

Floats = np.ndarray[Any, np.dtype[np.float64]]
METRICS = ("matthews", "accuracy", "f1", "pearson", "spearman")


def require_packages() -> None:
    """Raises UserError: what metrics need is not installed."""
    try:
        import scipy.stats  # noqa: F401
        import sklearn.metrics  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"finetune: needs {error.name} for GLUE's metrics; {way_to_install('finetune')}") from None


def scores(names: Sequence[str], predicted: Floats, right: Floats) -> dict[str, float]:
    """The metrics of that name, in percent.

    Args:
        predicted, right: (N,) numbers of classes, or scores.

    A correlation with predictions that are all alike, or of one row, is undefined; it counts as 0 here, as scikit-learn
    has it for Matthews' coefficient.
    """
    return {name: 100 * _functions()[name](predicted, right) for name in names}


def _functions() -> dict[str, Callable[[Floats, Floats], float]]:
    from scipy import stats
    from sklearn import metrics

    def correlation(function: Any) -> Callable[[Floats, Floats], float]:
        def call(predicted: Floats, right: Floats) -> float:
            if len(right) < 2 or np.all(predicted == predicted[0]) or np.all(right == right[0]):
                return 0.0
            return float(function(predicted, right).statistic)

        return call

    return {
        "matthews": lambda predicted, right: float(metrics.matthews_corrcoef(right, predicted)),
        "accuracy": lambda predicted, right: float(metrics.accuracy_score(right, predicted)),
        "f1": lambda predicted, right: float(metrics.f1_score(right, predicted, zero_division=0)),
        "pearson": correlation(stats.pearsonr),
        "spearman": correlation(stats.spearmanr),
    }
