"""A classifier for families of which transformers has only the causal model, the greater half of them."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class LastTokenClassifier(nn.Module):
    """A body and a linear head on its last token, as transformers' own classifiers of causal models are.

    Args:
        body: transformers' model without a head, as AutoModel gives it.
        num_outputs: classes, or 1 for a score.

    Attributes:
        score: the head; config: the body's.
    """

    def __init__(self, body: Any, num_outputs: int) -> None:
        super().__init__()
        self.model, self.config = body, body.config
        hidden_size = self.config.get_text_config().hidden_size
        self.score = nn.Linear(hidden_size, num_outputs, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        """As transformers' models have it."""
        embeddings: nn.Module = self.model.get_input_embeddings()
        return embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Logits (B, outputs) of rows (B, length) that are padded on the right."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1
        return SimpleNamespace(logits=self.score(hidden[torch.arange(len(last), device=last.device), last]))
