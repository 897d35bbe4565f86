"""What several devices can do together, and how much each of them gets. Imports no torch, for `plan` asks, too."""

from switchlora.errors import UserError
from switchlora.methods import METHODS, method_named
from switchlora.options import values as v
from switchlora.training.options import PretrainOptions


def check_strategy(options: PretrainOptions, strategy: str, num: int, whose: str = "processes") -> None:
    """Refuse what a run on several devices cannot do.

    Args:
        options: resolved, but for `parallel`.
        strategy: "ddp", "fsdp", or "none" for one device.
        num: how many devices, or processes.
        whose: what they are called.

    Raises:
        UserError: names the option, the rule and the way out.
    """
    method = method_named(options.method)
    if options.grad_compression != "none" and strategy != "ddp":
        raise UserError(
            f"--grad-compression {options.grad_compression}: is DDP's, and this is --parallel {strategy}; leave it out"
        )
    if strategy == "none":
        return
    if options.fused_backward and "fused_backward" in method.uses:
        raise UserError(f"--fused-backward: each of {num} {whose} would step before gradients are summed; leave it out")
    if strategy == "fsdp" and not method.shards:
        able = ", ".join(name for name, method in METHODS.items() if method.shards)
        raise UserError(
            f"--parallel fsdp: --method {options.method} needs whole matrices; use --parallel ddp, or one of {able}"
        )
    if options.warm_start_steps and "warm_start_steps" in method.uses:
        raise UserError(
            "--warm-start-steps: DDP cannot change what is trained on the way; use one process, or train with "
            "--method full first and give its folder as --model"
        )


def share_of_batch(options: PretrainOptions, num: int, whose: str = "processes") -> int:
    """The sequences of a step that each of `num` processes reads.

    Args:
        options: resolved.
        whose: what they are called.

    Raises:
        UserError: they do not divide the batch, or the micro-batch does not divide the share.
    """
    batch, micro = options.batch_size, options.micro_batch_size
    assert batch is not None
    if batch % num:
        raise UserError(
            f"--batch-size {batch}: must be a multiple of the {num} {whose}, which share it out; use "
            f"--batch-size {max(1, round(batch / num)) * num}, or start another number of them"
        )
    share = batch // num
    if micro is not None and share % micro:
        raise UserError(
            f"--micro-batch-size {micro}: must divide each process's share of --batch-size, {share} sequences; "
            f"use {v.largest_divisor(share, micro)}"
        )
    return share
