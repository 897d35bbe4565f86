"""The tasks of GLUE (Wang et al. 2018, arXiv 1804.07461): columns, labels, splits and official metrics."""

from dataclasses import dataclass

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        folder: its name in GLUE's own archive.
        texts, label: the columns of its .tsv files; numbers where they have no header.
        hub_texts: the columns of the data set on the hub, whose label is "label".
        labels: what the label column may say, in the order of the classes; none: a number from 0 to 5.
        metrics: of `metrics`, the first is the one that decides.
        splits: what is evaluated: a name, the .tsv file, and the split on the hub.
        short_rows: whether GLUE's own file has rows that lack columns, which its official reader passes over.
    """

    name: str
    folder: str
    texts: tuple[str | int, ...]
    label: str | int
    hub_texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: tuple[tuple[str, str, str], ...] = (("dev", "dev", "validation"),)
    short_rows: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether a number is predicted."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Of the head."""
        return len(self.labels) or 1


ENTAILMENT, NUMBERED = ("entailment", "not_entailment"), ("0", "1")
TASKS = {
    task.name: task
    for task in (
        Task("cola", "CoLA", (3,), 1, ("sentence",), NUMBERED, ("matthews",)),
        Task("sst2", "SST-2", ("sentence",), "label", ("sentence",), NUMBERED, ("accuracy",)),
        Task(
            "mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", ("sentence1", "sentence2"), NUMBERED,
            ("f1", "accuracy"),
        ),
        Task(
            "rte", "RTE", ("sentence1", "sentence2"), "label", ("sentence1", "sentence2"), ENTAILMENT, ("accuracy",)
        ),
        Task("stsb", "STS-B", ("sentence1", "sentence2"), "score", ("sentence1", "sentence2"), (),
             ("spearman", "pearson")),
        Task("qnli", "QNLI", ("question", "sentence"), "label", ("question", "sentence"), ENTAILMENT, ("accuracy",)),
        Task("wnli", "WNLI", ("sentence1", "sentence2"), "label", ("sentence1", "sentence2"), NUMBERED,
             ("accuracy",)),
        Task(
            "mnli", "MNLI", ("sentence1", "sentence2"), "gold_label", ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"), ("accuracy",),
            (("dev_matched", "dev_matched", "validation_matched"),
             ("dev_mismatched", "dev_mismatched", "validation_mismatched")),
        ),
        Task(
            "qqp", "QQP", ("question1", "question2"), "is_duplicate", ("question1", "question2"), NUMBERED,
            ("f1", "accuracy"), short_rows=True,
        ),
    )
}  # fmt: skip
