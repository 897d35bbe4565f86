"""What every run would stumble over, one after the other, found before the first of them starts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from switchlora.compare import reading
from switchlora.compare.plan import Plan
from switchlora.errors import UserError
from switchlora.machine.files import require_no_file
from switchlora.options.values import show


def check_folder(output: Path, *, only_shown: bool) -> None:
    """That nothing stands where folders will; only_shown: and that there is something to show.

    Raises:
        UserError: it is not so.
    """
    for folder in (output, output / "results", output / "runs"):
        require_no_file(folder)
    if only_shown and not (output / "results").is_dir():
        raise UserError(f"--output {show(str(output))}: there are no results to show; give the folder of a comparison")


def check_runs(plan: Plan) -> None:
    """Model, layers, packages, the names of data, and how several processes share a run.

    Raises:
        UserError: as the first of the runs would.
    """
    from switchlora.data.sources import open_source
    from switchlora.training.run import check_model
    from switchlora.training.strategies import check_strategy, share_of_batch

    num = plan.options.processes
    open_source(plan.first_run(plan.contenders[0]).options().data)  # all runs have the same
    for contender in plan.contenders:
        try:
            given = check_model(plan.first_run(contender).options())
            if num > 1:
                share_of_batch(given, num)
                check_strategy(given, "fsdp" if given.parallel == "fsdp" else "ddp", num)
        except UserError as error:
            raise UserError(f"--methods {show(contender.name)}: {error}") from None


def check_data(plan: Plan, records: Mapping[str, Mapping[str, Any]], output: Path, log: Callable[[str], None]) -> None:
    """Tokenise the text, unless it is streamed, once for all runs: too little of it shows now, or another one than that
    of the results which are there.

    Raises:
        UserError: it is so.
    """
    from switchlora.data.sources import HubSource, open_source
    from switchlora.training.run import check_model, load_data

    given = check_model(plan.first_run(plan.contenders[0]).options())
    if isinstance(open_source(given.data), HubSource):
        return
    corpus = load_data(given, log)
    corpus.close()
    if not reading.of_same_data(records, corpus.fingerprint):
        raise UserError(
            f"--data: has changed since the results in {show(str(output))} were made; put the old text back, or give "
            "another --output"
        )
