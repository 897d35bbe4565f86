"""The card: its head is YAML, its tables are tables, and nothing in a result breaks it."""

from pathlib import Path

import yaml

from switchlora.report.model_card import model_card, write_model_card

RESULT = {
    **{"method": "switchlora", "seed": 0, "validation_loss": 3.2, "validation_perplexity": 24.53, "steps": 400},
    **{"tokens": 819200, "total_parameters": 1234567, "switches_done": 4321, "bits_per_byte": 1.75},
    **{
        "command": "switchlora pretrain --target-modules '.*(q|k)_proj' --data 'a```b'",
        "torch": "2.13.0+cpu",
        "gpu": None,
    },
    "config": {"model": "tiny", "data": ["a.txt", "b.txt"], "target_modules": ".*(q|k)_proj", "r": 32, "clip": None},
}


def test_the_head_is_what_the_hub_reads() -> None:
    _, head, _ = model_card("my-run", RESULT, []).split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "not-chosen",
        "tags": ["pre-training", "switchlora"],
    }


def test_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "my-run").mkdir()
    rows = [{"step": t, "validation_loss": 5 - t / 100} for t in range(10, 310, 10)]
    write_model_card(tmp_path / "my-run" / "README.md", result=RESULT, rows=rows)
    card = (tmp_path / "my-run" / "README.md").read_text(encoding="utf-8")
    for expected in (
        *("# my-run", "![Loss over the steps of the run](loss.png)", "| validation perplexity | 24.53 |"),
        *("| training tokens | 819,200 |", "| `--target-modules` | .*(q\\|k)_proj |", "| `--data` | a.txt, b.txt |"),
        *(
            "AutoModelForCausalLM.from_pretrained",
            "arXiv 2406.06564",
            "| 300 | 2.0000 |",
            "## Limits",
            "| `--clip` | none |",
        ),
        f"````bash\n{RESULT['command']}\n````",
    ):
        assert expected in card, expected
    assert "gpu" not in card and "peak memory" not in card, "what is not known is left out"
    assert len([line for line in card.splitlines() if line.startswith("| ") and line.endswith("0 |")]) <= 15


def test_a_method_that_the_card_does_not_know() -> None:
    card = model_card("x", {"method": "relora"}, [])
    assert "`relora`" in card and "- relora\n" in card
