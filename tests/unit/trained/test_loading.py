"""Names that are neither a folder nor a model of the hub."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers.models.auto import auto_factory

from switchlora.errors import UserError
from switchlora.trained.loading import load_config, load_model, load_tokenizer


@pytest.mark.parametrize("loader", [load_config, load_model, load_tokenizer])
def test_a_mistyped_path_with_one_slash(loader: Callable[[str], Any]) -> None:
    with pytest.raises(UserError) as refused:
        loader("runs/typo")
    assert str(refused.value).startswith("--checkpoint runs/typo: is no local path, and the hub did not give it (")
    assert "check the name and the network, or give the output folder of a finished" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_hub_that_is_not_there_is_not_asked_for_an_adapter_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers does that first where peft is installed, whatever it was told for the model itself."""
    asked: list[bool] = []

    def look(*_: Any, local_files_only: bool = False, **__: Any) -> None:
        asked.append(local_files_only)

    monkeypatch.setattr(auto_factory, "is_peft_available", lambda: True)
    monkeypatch.setattr(auto_factory, "find_adapter_config_file", look)
    with pytest.raises(UserError, match="is no local path"):
        load_model("runs/typo")
    assert asked == [True]
