"""Which metric is which, and what happens where one is undefined."""

import math

import numpy as np
import pytest

from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.metrics import METRICS, scores

RIGHT = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
PREDICTED = np.array([1.0, 0.0, 0.0, 1.0, 1.0])


def test_classes():
    """2 of 3 ones found, 1 of 2 zeros: worked out by hand."""
    found = scores(("accuracy", "f1", "matthews"), PREDICTED, RIGHT)
    assert found["accuracy"] == pytest.approx(60)
    assert found["f1"] == pytest.approx(100 * 2 / 3)
    assert found["matthews"] == pytest.approx(100 * (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))


def test_scores():
    """Pearson sees distances, Spearman ranks alone."""
    right, predicted = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0, 30.0])
    found = scores(("pearson", "spearman"), predicted, right)
    assert found["spearman"] == pytest.approx(100)
    x, y = predicted - predicted.mean(), right - right.mean()
    assert found["pearson"] == pytest.approx(100 * (x @ y) / math.sqrt((x @ x) * (y @ y)))


def test_predictions_that_are_all_alike():
    assert scores(METRICS, np.zeros(5), RIGHT) == {
        "matthews": 0, "accuracy": pytest.approx(40), "f1": 0, "pearson": 0, "spearman": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", METRICS[3:])
def test_predictions_that_are_none_do_not_count_as_alike(name: str) -> None:
    assert scores((name,), np.full(5, np.nan), RIGHT)[name] != 0
    assert scores((name,), np.arange(5.0), np.ones(5)) == {name: 0}


def test_every_task_has_glue_s_own():
    official = {
        "cola": {"matthews"}, "sst2": {"accuracy"}, "mrpc": {"f1", "accuracy"}, "rte": {"accuracy"},
        "stsb": {"pearson", "spearman"}, "qnli": {"accuracy"}, "wnli": {"accuracy"}, "mnli": {"accuracy"},
        "qqp": {"f1", "accuracy"},
    }  # fmt: skip
    assert {name: set(task.metrics) for name, task in TASKS.items()} == official


def test_one_row_has_no_correlation():
    assert scores(("pearson", "spearman"), np.ones(1), np.ones(1)) == {"pearson": 0, "spearman": 0}


def test_they_are_scikit_learn_s_and_scipy_s_whatever_is_predicted():
    from scipy import stats
    from sklearn import metrics

    generator = np.random.default_rng(0)
    right, predicted = (generator.integers(0, 2, 101).astype(float) for _ in range(2))
    x, y = generator.normal(size=(2, 101))
    found = scores(METRICS[:3], predicted, right) | scores(METRICS[3:], x, y)
    assert found == {
        "matthews": 100 * metrics.matthews_corrcoef(right, predicted),
        "accuracy": 100 * metrics.accuracy_score(right, predicted),
        "f1": 100 * metrics.f1_score(right, predicted),
        "pearson": 100 * stats.pearsonr(x, y).statistic,
        "spearman": 100 * stats.spearmanr(x, y).statistic,
    }
