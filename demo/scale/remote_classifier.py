"""A classifier whose engine is in another process: it cannot be sent itself, but what it is can."""

from typing import Any

from runtime.classifier import Classifier

_TOLD = ("spec", "candidate", "reason", "passed_over", "sha256", "signer")


class _Elsewhere:
    """In place of an engine, which nobody here asks."""

    def close(self) -> None:
        """There is nothing to free."""


def told(classifier: Classifier) -> dict[str, Any]:
    """What a classifier is beside its engine."""
    return {name: getattr(classifier, name) for name in _TOLD}


def elsewhere(what: dict[str, Any]) -> Classifier:
    """The classifier that `told` tells of, which answers nothing."""
    return Classifier(backend=_Elsewhere(), **what)  # type: ignore[arg-type]
