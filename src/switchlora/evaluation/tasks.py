"""The tasks of EleutherAI's lm-eval, through its own Hugging Face model class, so that figures compare with others'."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from switchlora.errors import UserError, way_to_install
from switchlora.evaluation.options import EvaluateOptions
from switchlora.options.values import nearest, show
from switchlora.training.presets import first_line

WAY_OUT = f"{way_to_install('eval')}, or leave --tasks out"


class Tasks:
    """What was asked for, looked up once for all models.

    Raises:
        UserError: lm-eval is missing, a task is unknown (with the nearest name), or a folder is not there.
    """

    def __init__(self, options: EvaluateOptions) -> None:
        assert options.tasks is not None
        self.options = options
        try:
            from lm_eval.models.huggingface import HFLM  # lm-eval can be installed without what this needs
            from lm_eval.tasks import TaskManager
        except ModuleNotFoundError as error:
            package = (error.name or "lm_eval").partition(".")[0]
            raise UserError(
                f"--tasks {show(' '.join(options.tasks))}: needs the package {package}; {WAY_OUT}"
            ) from None
        self.model_class: Any = HFLM
        include = None
        if options.include_path is not None:
            include = Path(options.include_path).expanduser()
            if not include.is_dir():
                raise UserError(f"--include-path {show(options.include_path)}: no such folder; give one of .yaml files")
        if include is not None:
            _require_yaml(include)
        with _quiet():
            self.manager = TaskManager(include_path=None if include is None else str(include))
        known = self.manager.all_tasks
        for name in options.tasks:
            if name not in known:
                close = nearest(name, known)
                hint = f"did you mean {close}? " if close else ""
                raise UserError(
                    f"--tasks {show(name)}: lm-eval has no such task; {hint}"
                    "lm-eval ls tasks lists all, and --include-path adds your own"
                )

    def run(self, model: Any, tokenizer: Any) -> dict[str, dict[str, Any]]:
        """The metrics of every task for one model: values and standard errors by lm-eval's own names.

        Raises:
            UserError: a task's data cannot be had, or do not fit it.
        """
        from lm_eval import simple_evaluate

        options = self.options
        with _quiet():
            wrapped = self.model_class(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size)
            try:
                found: Any = simple_evaluate(
                    model=wrapped,
                    tasks=list(options.tasks or ()),
                    num_fewshot=options.num_fewshot,
                    limit=options.limit,
                    batch_size=options.batch_size,
                    task_manager=self.manager,
                    log_samples=False,
                )
            except Exception as error:  # lm-eval's, the data sets', the hub client's own
                raise UserError(
                    f"--tasks {show(' '.join(options.tasks or ()))}: lm-eval stopped with {type(error).__name__} "
                    f"({first_line(error)}); check the task's file, its data and the network"
                ) from error
        return {
            task: {**_plain(values), "version": found["versions"].get(task), "num_fewshot": found["n-shot"].get(task)}
            for task, values in found["results"].items()
        }


def _require_yaml(folder: Path) -> None:
    """Refuse what lm-eval would leave out without a word.

    Raises:
        UserError: names the file, and the line where it is no YAML.
    """
    import yaml

    for path in sorted(folder.rglob("*.yaml")):
        try:
            yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)  # !function stays what it is
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = "" if mark is None else f", line {mark.line + 1}"
            problem = getattr(error, "problem", None) or first_line(error)
            raise UserError(f"--include-path: {path}{line}: is no YAML ({problem}); mend it, or move it away") from None
        except UnicodeDecodeError:
            raise UserError(f"--include-path: {path}: is not UTF-8; convert it, or move it away") from None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """'acc,none' -> 'acc', where the filter is the only one; numbers as Python's."""
    kept = {name: value for name, value in values.items() if name not in ("alias", "name", "sample_len")}
    short = [name.partition(",")[0] for name in kept]
    return {
        brief if short.count(brief) == 1 else name: float(value) if isinstance(value, int | float) else value
        for (name, value), brief in zip(kept.items(), short, strict=True)
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and its data sets talk much; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
