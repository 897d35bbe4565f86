"""What came of it, for the terminal: mean and standard deviation over seeds of every metric."""

from typing import Any


def table(result: dict[str, Any]) -> str:
    """Rows: metrics; columns: what was evaluated. And what must be known to read them."""
    splits = list(result["metrics"])
    lines = ["", f"{'':10}" + "".join(f"  {split:>16}" for split in splits)]
    for metric in result["metrics"][splits[0]]:
        cells = [_cell(result["metrics"][split][metric]) for split in splits]
        lines.append(f"{metric:10}" + "".join(f"  {cell:>16}" for cell in cells))
    lines.append(
        f"{result['method']}, lr {result['lr']:g}, {len(result['seeds'])} seeds, in percent: mean ± standard deviation"
    )
    if result["lr_at_the_edge"]:
        lines.append("the best learning rate is at the edge of those tried; give more of them with --lr")
    if lost := [one["lr"] for one in result["tuning"] if one["metrics"] is None]:
        lines.append(f"the loss was not finite with lr {', '.join(format(lr, 'g') for lr in lost)}")
    if any(result["num_cut_rows"].values()):
        cut = ", ".join(
            f"{num:,} of {result['num_rows'][name]:,} in {name}" for name, num in result["num_cut_rows"].items() if num
        )
        lines.append(f"rows cut to {result['config']['seq_len']} tokens: {cut}; a larger --seq-len keeps more of them")
    if sizes := [one["delta_bytes"] for one in result["seeds"] if "delta_bytes" in one]:
        lines.append(f"deltas of {min(sizes):,} to {max(sizes):,} bytes in seed-*/delta.safetensors")
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f}" + ("" if found["sd"] is None else f" ± {found['sd']:.2f}")
