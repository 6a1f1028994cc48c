"""Print memory plans on a terminal."""

from __future__ import annotations

from typing import Any

# In the order of the plan's `bytes_per_device`, the total last.
KINDS = {
    "weights": "weights",
    "adapter": "adapter, optimizer, gradients",
    "activations": "activations kept for backward",
    "logits": "logits",
    "workspace": "workspace of one layer",
    "total": "total",
}


def print_memory(plan: dict[str, Any]) -> None:
    """Print the memory plan of `jora memory`: bytes, cards, longest row, collectives and arithmetic."""
    settings = plan["settings"]
    mesh = settings["mesh"]
    print(
        f"{settings['model']}: {settings['rows']} row(s) of {settings['seq_len']} tokens, "
        f"{settings['dtype']}, remat {settings['remat']}, "
        f"mesh {mesh['data']} x {mesh['tensor']} (data x tensor)"
    )
    print(f"compiled by: {plan['compiler']['description']}\n")
    print("bytes per device")
    for kind, size in plan["bytes_per_device"].items():
        print(f"  {KINDS[kind]:32s}{_gigabytes(size)}")
    if plan["offloaded_bytes"]:
        print(f"  {'on the host (offloaded)':32s}{_gigabytes(plan['offloaded_bytes'])}")
    print("\ncard              fits")
    for card in plan["cards"]:
        free = card["free_bytes"]
        verdict = f"yes, {free / 1e9:.1f} GB free" if card["fits"] else f"no, {-free / 1e9:.1f} GB short"
        print(f"  {card['name']:>14s}  {verdict}")
    name = next(card["name"] for card in plan["cards"] if card["gb"] == plan["card"])
    if plan["change"]:
        print(f"\nto fit {name}")
        for line in plan["change"]:
            print(f"  {line}")
    if settings["find_longest"]:
        longest = plan["longest_row"]
        ends = longest == plan["most_positions"]
        why = " (the model has no more positions)" if ends else ""
        print(f"\nlongest row on {name}: {f'{longest:,} tokens{why}' if longest else 'none fits'}")
    if plan["collectives"] is None:
        # Its text has one collective many times: one for each step of a computation that hides it.
        print("\ncollectives: not counted, because a TPU's compiler spreads each over several computations")
    else:
        _print_collectives(plan["collectives"])
    flops = plan["flops_per_token"]
    print(
        f"\nFLOPs per token: {flops['total']:.3g} (forward {flops['forward']:.3g}, backward "
        f"{flops['backward']:.3g}, recomputed {flops['recompute']:.3g})"
    )


def print_phases(plans: dict[str, dict[str, Any]]) -> None:
    """Print one line for each phase, for `jora plan --memory`."""
    for stage, plan in plans.items():
        cards = [str(card["gb"]) for card in plan["cards"] if card["fits"]]
        fits = f"fits cards of {', '.join(cards)} GB" if cards else "fits no card of up to 141 GB"
        total = plan["bytes_per_device"]["total"]
        print(f"{stage}: {total / 1e9:.2f} GB a device, {fits}")


def _print_collectives(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    print("\ncollectives               a step   a layer      MB each")
    for row in rows:
        per_layer = row["per_layer"] or ""
        print(f"  {row['kind']:20s}{row['count']:10d}{per_layer:>10}{row['bytes'] / 1e6:13.3f}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:12.3f} GB"
