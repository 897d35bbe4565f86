"""`--output` of the commands that look at models: a folder whose one file of figures is not overwritten unasked."""

from pathlib import Path

from switchlora.errors import UserError
from switchlora.machine.files import require_no_file, require_writable
from switchlora.options.values import show


def output_folder(name: str, figures: str, *, overwrite: bool) -> Path:
    """The folder, found fit before anything is measured; it need not be there yet.

    Args:
        name: as given.
        figures: the name of the file that will hold what was measured.
        overwrite: whether one that is there may go.

    Raises:
        UserError: it is a file, holds figures already, or cannot be written.
    """
    output = Path(name).expanduser()
    require_no_file(output)
    if (output / figures).exists() and not overwrite:
        raise UserError(f"--output {show(name)}: holds {figures} already; give another folder, or --overwrite")
    require_writable(output)
    return output
