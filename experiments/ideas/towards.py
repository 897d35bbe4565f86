"""SwitchLoRA whose new vectors point where the gradient does and no other vector yet.

The first moment of B is an average of s G A^T, so its columns are directions in which W wants to move. What of them
lies outside the span of B's vectors is what the factors miss: new vectors of B are the largest left singular vectors
of that, as long as the paper's are; those of A likewise, from the first moment of A.
"""

from typing import Any

from switchlora.methods.switchlora import SwitchLoraMethod


def directions(active: Any, moments: Any, num: int) -> Any:
    """The `num` largest directions of `moments` (r, k) outside the span of `active` (r, k), orthonormal (num, k)."""
    import torch

    spanned, _ = torch.linalg.qr(active.T)
    missed = moments - moments @ spanned @ spanned.T
    return torch.linalg.svd(missed, full_matrices=False).Vh[:num]


class Towards(SwitchLoraMethod):
    """See `switchlora.methods.protocol.Method`."""

    name = "towards"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The usual one, which writes new vectors into the pools just before they come in."""
        import torch

        optimizer = super().optimizer(model, options)
        switch = optimizer._switch

        @torch.no_grad()
        def switch_to_the_gradient(group: Any, part: slice) -> None:
            planned = group._plan(optimizer.draws, *optimizer._step_and_interval())
            for letter, chosen in planned.chosen.items():
                for number in sorted(set(chosen.layers.tolist())):
                    layer, state = group.layers[number], group.states[letter][number]
                    active, moments = layer.lora_A, state["exp_avg"]
                    if letter == "B":
                        active, moments = layer.lora_B.T, moments.T
                    arriving = torch.from_numpy(chosen.incoming[chosen.layers == number])
                    pool = state["candidates"]
                    length = pool[arriving].norm(dim=1, keepdim=True)
                    pool[arriving] = directions(active, moments, len(arriving)) * length
            switch(group, part)

        optimizer._switch = switch_to_the_gradient
        return optimizer


METHOD = Towards()
