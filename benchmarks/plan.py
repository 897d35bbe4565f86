"""The table of docs/plan.md, made by the planner: `python -m benchmarks.plan` writes it into the page.

bfloat16 for weights, factors, moments and candidates, one sequence of 2,048 tokens in a forward pass, activations
recomputed; what is sent is of a step of one forward pass.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from switchlora.distributed.traffic import ring_bytes
from switchlora.planning.estimate import memory_with, traffic_with
from switchlora.planning.options import PlanOptions
from switchlora.planning.outline import outline

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"
BEGIN, END = "<!-- table: python -m benchmarks.plan -->", "<!-- end of table -->"
HIDDEN = {"7b": 4096, "13b": 5120, "70b": 8192}
DEVICES = ((1, "none"), (8, "ddp"), (8, "fsdp"), (64, "fsdp"), (1024, "ddp"), (1024, "fsdp"))
GIGA = 1e9


def rows() -> Iterator[str]:
    """The lines of the table."""
    head = ("model", "method", "devices", "strategy", "on each device", "of it gathered", "candidates on its host",
            "fits 80 GB", "sent a step")  # fmt: skip
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for model, hidden in HIDDEN.items():
        for method, r in (("full", None), ("switchlora", hidden // 4), ("switchlora", hidden // 8)):
            common = PlanOptions(
                model=model, method=method, r=r, batch_size=1024, micro_batch_size=1, seq_len=2048,
                checkpoint_activations=True, pretrain={"factor_dtype": "bf16", "moment_dtype": "bf16"},
            )  # fmt: skip
            run = common.run()
            drawn = outline(run)
            for num, strategy in DEVICES:
                options = dataclasses.replace(common, gpus=num, parallel=strategy)
                memory, traffic = memory_with(options, drawn), traffic_with(options, run, drawn, 1)
                sent = f"{ring_bytes(traffic, num) / GIGA:,.1f} GB" if traffic else ""
                yield " | ".join(
                    (
                        f"| {model}",
                        method + (f", r = {r}" if r else ""),
                        f"{num:,}",
                        strategy,
                        f"{memory.device_bytes / GIGA:,.1f} GB",
                        f"{memory.gathered_bytes / GIGA:,.1f} GB" if memory.gathered_bytes else "",
                        f"{memory.candidate_host_bytes / GIGA:,.1f} GB" if memory.candidate_host_bytes else "",
                        "yes" if memory.device_bytes <= options.gpu_memory else "no",
                        f"{sent} |",
                    )
                )


def main() -> None:
    """Write it."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([before + BEGIN, "", *rows(), "", END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
