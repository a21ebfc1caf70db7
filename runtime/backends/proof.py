"""Proof that an opened engine computes in the number format that was asked for."""

from runtime.errors import NotAsAsked

# The last layer and the normalisation keep a higher precision on purpose; the rest must be as asked
MINIMUM_SHARE = {"fp32": 1.0, "fp16": 0.95, "bf16": 0.95, "int8": 0.95}


def shares(work: dict[str, float]) -> dict[str, float]:
    """Amounts of work per format as shares of the whole, rounded to 4 digits."""
    whole = sum(work.values()) or 1.0
    return {name: round(amount / whole, 4) for name, amount in sorted(work.items())}


def require(found: dict[str, float], precision: str, who: str) -> dict[str, float]:
    """Return `found`; raise NotAsAsked when too small a share of the multiply-adds is in `precision`."""
    if found.get(precision, 0.0) < MINIMUM_SHARE[precision]:
        listed = ", ".join(f"{100 * share:.0f} % {name}" for name, share in found.items()) or "nothing that it reports"
        raise NotAsAsked(f"{who} was asked for {precision}, but computes {listed}")
    return found
