"""Who asks in which precision a product is to run."""

import contextlib

import torch


def asked_of(monkeypatch, module) -> list[torch.dtype]:
    """The formats of the weights for which `module` will have asked (`weight_update.products_for`)."""
    asked = []

    @contextlib.contextmanager
    def record(W):
        asked.append(W.dtype)
        yield

    monkeypatch.setattr(module, "products_for", record)
    return asked
