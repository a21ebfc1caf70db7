"""The metrics of several processes as one text, summed or apart."""

from collections.abc import Iterable

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class _Families:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def gathered(texts: Iterable[tuple[str, bytes]], apart: bool) -> bytes:
    """Our metrics of several processes, each by its name and text: summed, or apart with the label `replica`."""
    families: dict[str, Metric] = {}
    sums: dict[str, dict[tuple, float]] = {}
    for replica, text in texts:
        for family in text_string_to_metric_families(text.decode()):
            if not family.name.startswith("saji_") or family.name.endswith("_created"):
                continue
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            values = sums.setdefault(family.name, {})
            for sample in family.samples:
                labels = {**sample.labels, "replica": replica} if apart else sample.labels
                key = sample.name, tuple(labels.items())
                values[key] = values.get(key, 0.0) + sample.value
    for name, family in families.items():
        for (sample, labels), value in sums[name].items():
            family.add_sample(sample, dict(labels), value)
    return generate_latest(_Families(families.values()))  # type: ignore[arg-type]
