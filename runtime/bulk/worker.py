"""What a process of Ray's does: names of photos, or a part of a table that holds them, in; files of their rows out."""

import io
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime import classify
from runtime.bulk.places import content_of, line_of, located
from runtime.bulk.shards import PENDING, Job, schema
from runtime.bulk.sources import CONTENT, NAME, Names, digest
from runtime.classifier import load
from runtime.environment import usable_cores
from runtime.errors import BadPhoto, NoAnswer, SajiError
from runtime.files import as_text
from runtime.threads import in_order

PIECE = "piece"  # the column of what there is to do
READERS = 8  # photos that a process reads at a time from a network
TRIES = 5  # processes that may die at the same photos before one of these is taken for the cause


class Worker:
    """An engine, and where its rows go; of a table, photos that are `known` to have one are left out."""

    def __init__(self, job: Job, known: Names, shard: int) -> None:
        self.job, self.known, self.shard, self.streams = job, known, shard, usable_cores() if job.gpu else 1
        self.files, place = located(job.output)
        self.pending, self.refusal = f"{place}/{PENDING}", ""
        try:
            self.classifier = load(job.model, threads=1, streams=self.streams)
        except (SajiError, OSError) as error:
            self.refusal = f"a node cannot open the model: {error}"
            return
        if self.classifier.served_by != job.served_by:
            self.refusal = (
                f"a node would answer by {self.classifier.served_by}, others by {job.served_by}, and answers of two "
                "models are never mixed; give --model a folder, whose one engine all nodes have"
            )

    def __call__(self, pieces: Any) -> Iterator[Any]:
        """A row for each file: its name, how many photos were classified and how many not, or why nothing can be."""
        import pyarrow as pa

        for items in map(list, self._shards(pickle.loads(pieces[PIECE][0].as_py()))):
            file, rows, refusal = "", list[dict[str, Any]](), self.refusal
            try:
                if items and not refusal:
                    file, rows = self._written(items)
            except (SajiError, OSError, pa.ArrowException) as error:  # of the output, such as a full disk
                refusal = str(error)
            unread = sum(row["error"] is not None for row in rows)
            yield pa.table({"file": [file], "rows": [len(rows) - unread], "unread": [unread], "refusal": [refusal]})

    def _shards(self, piece: Any) -> Iterator[Iterator[tuple[str, Any]]]:
        """Of a list the names, of a part of a table the names and contents, as many as a file of rows is to have."""
        if isinstance(piece, list):
            yield ((name, None) for name in piece)
            return
        for batch in piece.to_batches(columns=[NAME, CONTENT], batch_size=self.shard):
            pairs = zip(batch[NAME].to_pylist(), batch[CONTENT], strict=True)
            yield (pair for pair in pairs if pair[0] not in self.known)

    def _written(self, items: list[tuple[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        tries, file = self._tries(items[0][0]), f"{uuid.uuid4().hex}.parquet"
        far = any(content is not None or "://" in name for name, content in items)
        read = in_order(self._read, items, READERS) if far else map(self._read, items)
        rows = list(in_order(self._row, read, self.streams) if self.streams > 1 else map(self._row, read))
        pq.write_table(pa.Table.from_pylist(rows, schema()), f"{self.pending}/{file}", filesystem=self.files)
        for mark in tries:
            self.files.delete_file(mark)
        return file, rows

    def _tries(self, first: str) -> list[str]:
        """Leave a mark that the photos from `first` on are tried, beside those of processes that died at it."""
        from pyarrow.fs import FileSelector

        mark = f"{self.pending}/{digest(first).hex()}"
        tries = [info.path for info in self.files.get_file_info(FileSelector(self.pending)) if mark in info.path]
        if len(tries) == TRIES:
            raise SajiError(
                f"{TRIES} processes died at the photos from {first} on, which may be for want of memory or for one of "
                "them; find it with a small --shard, and leave it out"
            )
        tries.append(f"{mark}.{len(tries)}")
        self.files.open_output_stream(tries[-1]).close()
        return tries

    def _read(self, item: tuple[str, Any]) -> tuple[str, Any]:
        import pyarrow as pa

        name, content = item
        if content is None and "://" not in name:
            return name, str(Path(self.job.folder, name))
        try:
            photo = io.BytesIO((content.as_py() or b"") if content is not None else content_of(name))
        except (OSError, pa.ArrowException) as error:
            return name, BadPhoto(f"{Path(name).name} cannot be opened: {line_of(error)}")
        photo.name = name  # for the words of what is wrong with it
        return name, photo

    def _row(self, item: tuple[str, Any]) -> dict[str, Any]:
        name, source = item
        row = {"photo": as_text(name), "served_by": self.job.served_by, "error": None}
        try:
            if isinstance(source, BadPhoto):
                raise source
            return row | classify.fields(self.classifier(source))
        except (BadPhoto, NoAnswer) as error:
            return row | {"error": str(error)}
