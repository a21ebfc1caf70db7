"""The rows of a job: files of Parquet in its output, each of which counts as soon as it has its name."""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bulk.places import located, saying
from runtime.bulk.sources import Names
from runtime.errors import SajiError
from runtime.files import alone

PENDING = ".pending"  # the folder of files that do not count yet
_FILE = re.compile(r"part-(\d+)\.parquet")


@dataclass(frozen=True)
class Job:
    """What a process must know: the model by its path, who serves, where rows go, and where relative names begin.

    An engine that needs a `gpu` has one, and each core of its machine reads photos for it.
    """

    model: str
    served_by: str
    output: str
    folder: str
    gpu: bool


class Shards:
    """The files of Parquet in a job's output, which this process alone adds to. Use it as a context manager.

    `names` are the photos that they hold. Raises SajiError where another model wrote them, or another process does.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.names, self.next, self.opened = job, Names(), 0, ExitStack()
        self.files, self.place = located(job.output)

    def __enter__(self) -> "Shards":
        from pyarrow.fs import FileSelector

        with ExitStack() as opening:
            opening.enter_context(saying(f"no rows can be written into {self.job.output}; name another place"))
            self.files.create_dir(f"{self.place}/{PENDING}")
            if self.files.type_name == "local":  # an object store has no locks
                opening.enter_context(alone(Path(self.place), "writing rows into"))
            opening.callback(self.files.delete_dir, f"{self.place}/{PENDING}")
            self.files.delete_dir_contents(f"{self.place}/{PENDING}")
            for info in self.files.get_file_info(FileSelector(self.place)):
                if named := _FILE.fullmatch(info.base_name):
                    self.next = max(self.next, int(named[1]) + 1)
                    self._read(info.path)
            self.opened = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def keep(self, file: str) -> None:
        """Let a file that a process wrote count from now on; "" is none."""
        if file:
            with saying(f"{self.job.output} does not take rows any more; type the same again to go on"):
                self.files.move(f"{self.place}/{PENDING}/{file}", f"{self.place}/part-{self.next:05}.parquet")
            self.next += 1

    def _read(self, path: str) -> None:
        import pyarrow.parquet as pq

        with saying(f"{path} is no file of rows; remove it to have its photos anew"):
            table = pq.read_table(path, columns=["photo", "served_by"], filesystem=self.files)
        for other in set(table["served_by"].to_pylist()) - {self.job.served_by}:
            raise SajiError(
                f"{self.job.output} holds answers of {other}, which this model ({self.job.served_by}) would go on "
                "with; name another folder for --output, or that model with --model"
            )
        for name in table["photo"].to_pylist():
            self.names.noted(name)


def schema() -> Any:
    """A row of the output; probabilities with the most likely first, milliseconds of each part."""
    import pyarrow as pa

    text, numbers = pa.string(), pa.map_(pa.string(), pa.float64())
    columns = {"photo": text, "label": text, "sure": pa.bool_(), "probabilities": numbers, "answer": text}
    return pa.schema({**columns, "milliseconds": numbers, "served_by": text, "error": text})
