"""`switchlora generate` on a run of a second or two."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from switchlora.errors import NonFiniteError, UserError
from switchlora.generation import command
from switchlora.generation.command import generate
from switchlora.generation.options import GenerateOptions
from switchlora.report.sample import start_tokens


def options(run: Path, **values: Any) -> GenerateOptions:
    return GenerateOptions(checkpoint=str(run), **{"device": "cpu", "threads": 1, "max_new_tokens": 24, **values})


def test_what_is_streamed_is_what_is_returned(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = generate(options(trained / "run", prompt=("def ", "import")))
    assert [text.startswith(prompt) for text, prompt in zip(texts, ("def ", "import"), strict=True)] == [True, True]
    assert capsys.readouterr().out == f"{texts[0]}\n{command.SEPARATOR}{texts[1]}\n"


def test_temperature_0_takes_the_likeliest_token_each_time(trained: Path) -> None:
    """Against a loop of our own, without a cache."""
    text = generate(options(trained / "run", prompt=("def ",), temperature=0.0))[0]
    model = AutoModelForCausalLM.from_pretrained(trained / "run")
    tokenizer = AutoTokenizer.from_pretrained(trained / "run")
    tokens = start_tokens(model, tokenizer, "def ")
    for _ in range(24):
        best = int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        tokens.append(best)
    assert text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_the_seed_decides_and_no_generator_moves(trained: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (generate(options(trained / "run", prompt=("def ",), seed=s))[0] for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first != other
    assert generate(options(trained / "run", prompt=("x", "def "), seed=1))[1] == first


def test_pieces_arrive_while_it_writes_and_hold_whole_characters(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn is replaced by the bytes of a text, of which a token holds one each at most."""
    tokenizer = AutoTokenizer.from_pretrained(trained / "run")
    tokens = tokenizer.encode("ein Käfer für 3 € 🙂 noch", add_special_tokens=False)
    assert len(tokens) > 20
    shown: list[str] = []
    seen: list[int] = []

    class Model:
        device, config, generation_config = torch.device("cpu"), type("Config", (), {"eos_token_id": 0}), None

        def get_input_embeddings(self) -> torch.nn.Module:
            return torch.nn.Embedding(300, 1)

        def generate(self, *, input_ids: torch.Tensor, streamer: Any, **_: Any) -> None:
            streamer.put(input_ids)
            for token in tokens:
                streamer.put(torch.tensor([token]))
                seen.append(len(shown))
            streamer.end()

    start = tokenizer.encode("So ", add_special_tokens=False)
    whole = command.continue_text(Model(), tokenizer, start, 99, options(trained / "run"), shown.append)
    assert whole == "ein Käfer für 3 € 🙂 noch"
    assert not any("\ufffd" in piece for piece in shown)
    assert len(set(seen)) > 12  # pieces came at different times


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_k": 0, "top_p": 1e-6}, {"temperature": 0.001}])
def test_only_the_likeliest_token_is_left_to_draw(trained: Path, narrow: dict[str, Any]) -> None:
    greedy = generate(options(trained / "run", prompt=("def ",), temperature=0.0))
    assert generate(options(trained / "run", prompt=("def ",), **narrow)) == greedy


def copy_of(trained: Path, folder: Path, file: str, **settings: Any) -> Path:
    """The run with other settings in one of its JSON files."""
    copied = shutil.copytree(trained / "run", folder)
    path = copied / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | settings))
    return copied


def test_a_text_ends_where_an_end_is_drawn(trained: Path, tmp_path: Path) -> None:
    """An ordinary token is made an end: the fourth that the model writes anyway."""
    (whole,) = generate(options(trained / "run", prompt=("def ",), temperature=0.0))
    tokenizer = AutoTokenizer.from_pretrained(trained / "run")
    model = AutoModelForCausalLM.from_pretrained(trained / "run")
    tokens = start_tokens(model, tokenizer, "def ")
    num_given = len(tokens)
    for _ in range(4):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    end = tokens[-1]
    until = tokens[: tokens.index(end, num_given) + 1]
    ends = copy_of(trained, tmp_path / "ends", "config.json", eos_token_id=[end, 50256])
    (text,) = generate(options(ends, prompt=("def ",), temperature=0.0))
    assert text == tokenizer.decode(until, skip_special_tokens=True)
    assert len(text) < len(whole)


def test_sampling_settings_of_a_checkpoint_do_not_count(trained: Path, tmp_path: Path) -> None:
    theirs = {"repetition_penalty": 50.0, "do_sample": True, "min_new_tokens": 3}
    loud = copy_of(trained, tmp_path / "loud", "generation_config.json", **theirs)
    assert AutoModelForCausalLM.from_pretrained(loud).generation_config.repetition_penalty == 50.0
    greedy = generate(options(trained / "run", prompt=("def ",), temperature=0.0))
    assert generate(options(loud, prompt=("def ",), temperature=0.0)) == greedy


def test_a_piece_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(arrived), encoding="utf-8"))  # type: ignore
    command._show("a piece")
    assert arrived.getvalue() == b"a piece"


def test_from_all_tokens_and_in_another_format(trained: Path) -> None:
    free = {"prompt": ("def ",), "temperature": 2.0}
    wide, few = (generate(options(trained / "run", **free, top_k=k))[0] for k in (0, 2))
    assert wide != few
    assert generate(options(trained / "run", **free, dtype="bf16"))[0].startswith("def ")


def test_standard_input_and_a_reader_that_leaves(trained: Path) -> None:
    words = [sys.executable, "-m", "switchlora", "generate", "--checkpoint", str(trained / "run"), "--prompt", "-"]
    done = subprocess.run(words, input="def f(", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def f(")
    assert done.stderr == ""
    left = subprocess.run(
        f"{' '.join(words)} x y z | head -c 1", shell=True, input="q", capture_output=True, text=True, timeout=120
    )
    assert (left.stdout, left.stderr) == ("q", "")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"checkpoint": None}, ["--checkpoint", "must be given"]),
        ({"checkpoint": "no/such/thing/here"}, ["--checkpoint no/such/thing/here", "no such folder"]),
        ({"prompt": ("x" * 500,)}, ["--prompt xxx", "64 positions", "shorter"]),
        ({"prompt": ("def ",), "max_new_tokens": 64}, ["--max-new-tokens 64", "64 positions", "use at most 6"]),
    ],
)
def test_mistakes(trained: Path, changes: dict[str, Any], parts: list[str]) -> None:
    values = {"checkpoint": str(trained / "run"), "device": "cpu", **changes}
    with pytest.raises(UserError) as refused:
        generate(GenerateOptions(**values))
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in parts), str(refused.value)


def test_what_is_no_text_or_no_number_or_another_models(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-m", "switchlora", "generate", "--checkpoint", str(trained / "run"), "--prompt"]
    for prompt, typed in ((b"-", b"caf\xe9"), (b"caf\xe9", b"")):
        done = subprocess.run([*words, prompt], input=typed, capture_output=True, timeout=120)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"is not UTF-8" in done.stderr and done.stderr.count(b"\n") == 1
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        generate(options(trained / "run", prompt=("-",)))
    small = AutoModelForCausalLM.from_pretrained(trained / "run")
    small.resize_token_embeddings(250)
    small.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(trained / "run").save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match=r"--checkpoint .*small: its tokenizer gives token \d+, and the model has 250"):
        generate(options(tmp_path / "small", prompt=("return self.def import",)))
    with torch.no_grad():
        small.lm_head.weight[3] = torch.tensor([3e38, -3e38]).repeat(16)  # finite, but what follows is not
    small.save_pretrained(tmp_path / "small")
    for temperature in (0.0, 0.8):
        with pytest.raises(NonFiniteError, match="logits are NaN"):
            generate(options(tmp_path / "small", prompt=None, temperature=temperature))


def test_blanks_count_in_a_prompt(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = generate(options(trained / "run", prompt=("    ",), max_new_tokens=2))
    assert text.startswith("    ")
    assert capsys.readouterr().out == text + "\n"
    with pytest.raises(UserError, match="--prompt '': must not be empty"):
        options(trained / "run", prompt=("",))


def test_options_that_cannot_be(trained: Path) -> None:
    with pytest.raises(UserError, match=r"--temperature 1e-40: must be 0 or at least 0.001"):
        options(trained / "run", temperature=1e-40)
    with pytest.raises(UserError, match="can be read once"):
        options(trained / "run", prompt=("-", "x", "-"))


def test_a_checkpoint_without_tokenizer(trained: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(trained / "run", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="has no tokenizer"):
        generate(options(bare))


def test_without_a_prompt_a_text_begins(trained: Path) -> None:
    assert len(generate(options(trained / "run", max_new_tokens=None, prompt=None))) == 1
