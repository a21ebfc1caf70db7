"""The metrics of several processes as one text."""

from collections.abc import Iterable

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class _Families:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def gathered(texts: Iterable[tuple[str, bytes]]) -> bytes:
    """Our metrics of several processes, each by its name and text, with the label `replica`.

    They are not summed: with a process that ends or is late a sum would fall, which Prometheus takes for a start anew.
    """
    families: dict[str, Metric] = {}
    for replica, text in texts:
        for family in text_string_to_metric_families(text.decode()):
            if not family.name.startswith("saji_") or family.name.endswith("_created"):
                continue
            ours = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                ours.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    return generate_latest(_Families(families.values()))  # type: ignore[arg-type]
