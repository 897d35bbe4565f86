"""The command line from outside: exit codes, one line on stderr, help without torch, flags over YAML."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from switchlora import cli
from switchlora.errors import NonFiniteError
from switchlora.options.fields import flag
from switchlora.training.options import PretrainOptions
from tests.option_tables import assert_page_has_every_option

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "100"}
    command = [sys.executable, "-m", "switchlora", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120)


def complaint(*arguments: str, cwd: Path | None = None) -> str:
    """The one line that a mistake gets, after its prefix."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("switchlora: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("switchlora: error: ").strip()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["pretrian"], ["unknown command pretrian", "did you mean pretrain?"]),
        (["--verion"], ["unknown option --verion"]),
        (["pretrain", "--bach-size", "4"], ["unknown option --bach-size", "did you mean --batch-size?"]),
        (["pretrain", "--batch", "4"], ["unknown option --batch"]),  # no abbreviations
        (["pretrain", "--batch-size"], ["--batch-size: expected one argument"]),
        (["pretrain", "--batch-size", "0"], ["--batch-size 0: must be a whole number, at least 1", "leave it out"]),
        (["pretrain", "--lr", "-1"], ["--lr -1: must be a number of at least 0"]),
        (["pretrain", "--dtype", "fp16"], ["--dtype fp16", "fp32, bf16 or bf16-mixed"]),
        (["evaluate"], ["--checkpoint: must be given; name the output folder of a finished run"]),
        (["spectrum"], ["--checkpoint: must be given; name the output folder of a finished run"]),
        (["pretrain", "stray"], ["unexpected argument stray"]),
        (["pretrain", "--config", "nowhere.yaml"], ["--config nowhere.yaml: cannot be read"]),
        (["pretrain", "--interval", "9"], ["--interval 9", "--interval 10 or more"]),
        (["pretrain", "--threads", "100000"], ["--threads 100000", "at most 1024"]),
        (["pretrain", "--batch-size", "1e12"], ["--batch-size 1e12", "at most 2147483647"]),
        (["pretrain", "--batch-size", "1e9"], ["--batch-size 1000000000", "--batch-size 8388608 or less"]),
        (["pretrain", "--tokenizer", "train:99999999999999999"], ["--tokenizer", "at most 16777216"]),
        (["pretrain", "--lr", "1e300"], ["--lr 1e300", "at most 1e+18"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    message = complaint(*arguments, cwd=tmp_path)
    for part in parts:
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_yaml_mistakes_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lr: 0.1\nsteps: [\n", encoding="utf-8")
    assert "--config run.yaml: is not valid YAML, line 3" in complaint("pretrain", "--config", "run.yaml", cwd=tmp_path)
    (tmp_path / "run.yaml").write_text("learning_rate: 0.1\n", encoding="utf-8")
    assert "--config run.yaml: unknown option learning_rate" in complaint(
        "pretrain", "--config", "run.yaml", cwd=tmp_path
    )


def test_help_and_mistakes_do_not_import_torch() -> None:
    program = """
import sys
from switchlora.cli import COMMANDS, main
assert main(["--help"]) == 0
assert main(["--version"]) == 0
for command in COMMANDS:
    assert main([command, "--help"]) == 0
assert main(["evaluate", "--limit", "3"]) == 2
assert main(["generate", "--temperature", "1e-9"]) == 2
assert main(["pretrain", "--batch-size", "no"]) == 2
assert main(["pretrain", "--config", sys.argv[1], "--interval", "1"]) == 2
slow = {"torch", "transformers", "numpy", "matplotlib", "datasets"} & sys.modules.keys()
assert not slow, slow
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", program, str(ROOT / "configs" / "demo.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


def test_resolving_does_not_import_torch_either() -> None:
    program = """
import sys
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve
resolve(PretrainOptions(model="1.3b"))
assert not {"torch", "transformers", "numpy"} & sys.modules.keys()
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, spec in PretrainOptions.specs().items():
        assert re.search(rf"{flag(name)}[ ,]", text), name
        assert f"(default: {spec.default})" in text, name
    assert "--config FILE" in text


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "pretrain" in capsys.readouterr().out


def parse(*argv: str) -> PretrainOptions:
    options = cli.parse_flags("pretrain", cli.COMMANDS["pretrain"], list(argv))
    assert isinstance(options, PretrainOptions)
    return options


def test_flags_become_options(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("compile: true\nlr: 1e-3\nsteps: 7\ndata: [a, b]\n", encoding="utf-8")
    options = parse("--config", str(file), "--no-compile", "--lr=2e-3", "--data", "c", "d", "--data", "e")
    assert (options.compile, options.lr, options.steps, options.data) == (False, 2e-3, 7, ("c", "d", "e"))
    assert parse("--config", str(file)).compile
    assert parse() == PretrainOptions()


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit code of a run that ends with `error`."""

    def end(options: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules[__name__], "ending", end, raising=False)
    command = cli.Command("fail", "switchlora.training.options:PretrainOptions", f"{__name__}:ending")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setitem(cli.COMMANDS, "fail", command)
    return cli.main(["fail"])


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (NonFiniteError("loss is nan at step 3"), 3, "loss is nan at step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2, "No space left on device (runs/x); free some"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "No space left on device; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), 2, "Permission denied (/root); choose"),
        (ModuleNotFoundError("", name="torch"), 2, f"torch is not installed for {sys.executable}; in the checkout:"),
    ],
)
def test_how_a_run_ends(
    error: BaseException, code: int, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, error) == code
    message = capsys.readouterr().err
    assert message.startswith("switchlora: error: ")
    assert part in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("name", ["pretrain", "bench"])
def test_ctrl_c_says_whether_the_same_command_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert cli.main([name]) == 130
    assert ("the same command goes on" in capsys.readouterr().err) == (name == "pretrain")


@pytest.mark.parametrize("words", ["plan --model 60m", "pretrain --help", "--version"])
def test_a_reader_that_leaves_ends_a_command_without_a_word(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "switchlora", *words.split()]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_full_disk_is_found_behind_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = RuntimeError("writing failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert failing(monkeypatch, wrapped) == 2


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        failing(monkeypatch, ZeroDivisionError())
    with pytest.raises(ModuleNotFoundError):
        failing(monkeypatch, ModuleNotFoundError("", name="switchlora.nowhere"))


def test_the_reference_page_has_every_option_as_the_code_has_it() -> None:
    assert_page_has_every_option("pretrain.md", PretrainOptions)
    assert "`--config`" in (ROOT / "docs" / "pretrain.md").read_text(encoding="utf-8")
