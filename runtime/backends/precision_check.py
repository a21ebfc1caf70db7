"""Proof that an opened engine computes in the number format that was asked for."""

from collections.abc import Iterable
from typing import Any

from runtime.errors import NotAsAsked

# The last layer and the normalisation keep a higher precision on purpose; the rest must be as asked
MINIMUM_SHARE = {"fp32": 1.0, "fp16": 0.95, "bf16": 0.95, "int8": 0.95}

Layer = tuple[str, str, float]  # name, number format, amount of work: multiply-adds where they can be told


def check_precision(layers: Iterable[Layer], precision: str, who: str, facts: dict[str, Any]) -> dict[str, float]:
    """Share of the work per number format; raises NotAsAsked, naming layers, when too little is in `precision`.

    `facts["kept"]` maps the layers that export declared to keep at a higher precision to their share of the work:
    they are set apart, what remains must be as asked.
    """
    layers = list(layers)
    whole = sum(amount for _, _, amount in layers) or 1.0
    found: dict[str, float] = {}
    for _, kind, amount in layers:
        found[kind] = found.get(kind, 0.0) + amount / whole
    apart = sum(facts.get("kept", {}).values())
    if found.get(precision, 0.0) < MINIMUM_SHARE[precision] * (1 - apart) - 1e-6:
        listed = ", ".join(f"{100 * share:.0f} % {kind}" for kind, share in found.items()) or "nothing that it reports"
        raise NotAsAsked(f"{who} was asked for {precision}, but computes {listed}{_named(layers, precision)}")
    return {kind: round(share, 4) for kind, share in sorted(found.items())}


def _named(layers: list[Layer], precision: str) -> str:
    others = sorted((layer for layer in layers if layer[1] != precision), key=lambda layer: -layer[2])
    names = [name for name, _, _ in others[:5]] + (["…"] if len(others) > 5 else [])
    return f" ({', '.join(names)})" if names else ""
