"""`python -m runtime classify --ray`: as many photos as there are, on all cores of this machine or of a Ray cluster.

Ray Data deals them out, some hundreds at once, to an engine on each core. Its process writes their rows to a file under
a temporary name; this one, as soon as it is told, moves the file to where it counts. So whoever dies on the way, and
however often Ray tries again, a photo has one row. What a killed run left undone the next one tells by the names in the
files that are there. (Ray Data's own checkpoints need a table to begin with, and are a second record of what is done.)
"""

import argparse
import io
import itertools
import logging
import os
import re
import secrets
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import classify, signature
from runtime.backends import BACKENDS
from runtime.classifier import load
from runtime.command_line import require_extra
from runtime.elsewhere import CONTENT, NAME, Everywhere, Names, absolute, content_of, digest, line_of, located, saying
from runtime.environment import usable_cores
from runtime.errors import BadPhoto, SajiError
from runtime.files import alone
from runtime.rowfile import as_text
from runtime.terminal import quiet

SHARD = 500  # photos: some seconds of a core, which is what a kill costs
READERS = 8  # photos that a process reads at a time from a network
TRIES = 5  # processes that may die at the same photos before one of these is taken for the cause
_PENDING, _FILE = ".pending", re.compile(r"part-(\d+)\.parquet")
_STORE = 2**30  # bytes for what is between processes: names, and photos that come in a table


def add_to(verbs: Any) -> None:
    """Add `classify` to the subparsers of `python -m runtime`, with --ray."""
    verb = classify.add_to(verbs)
    words = (
        "on all cores of a Ray cluster, without an ADDRESS of this machine, into files of Parquet in the folder or URI "
        f"--output; photos are then also URIs, such as s3://bucket/folder, and .parquet files with a column {NAME}, "
        f"and {CONTENT} where the photos are in there"
    )
    verb.add_argument("--ray", nargs="?", metavar="ADDRESS", const="", help=words)
    verb.add_argument("--shard", type=int, default=SHARD, help="photos in a file of --ray's (default: %(default)s)")
    verb.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.ray is None:
        return classify.run(arguments)
    if not arguments.output or arguments.json or arguments.csv or arguments.shard < 1:
        raise SajiError("--ray writes files of Parquet, of 1 photo or more; type: --ray --output FOLDER")
    require_extra("scale", "ray", "pyarrow")
    return classify_on_ray(arguments.photos, arguments.model, arguments.output, arguments.ray, arguments.shard)


def classify_on_ray(places: list[str], model: Path, output: str, address: str = "", shard: int = SHARD) -> None:
    """Classify the photos of `places` into a file of Parquet in `output` for each `shard` of them.

    `address` is a running cluster's, "" starts Ray here and ends it. Every node opens `model`, by the same path. Photos
    that `output` holds are left out. What cannot be read has a row that says why, and in the end raises GateFailed.
    """
    counter, rows, unread = classify.Counter(os.isatty(2)), 0, 0
    with load(model, threads=1) as classifier:
        counter.say(classify.introduction(classifier))
        gpu = BACKENDS[classifier.candidate.backend].gpu
        job = Job(str(model.absolute()), classifier.served_by, absolute(output), str(Path.cwd()), gpu)
    with ExitStack() as opened:
        shards = opened.enter_context(Shards(job))
        photos = Everywhere(places, counter.say, shards.names)
        known, found = Names(shards.names if photos.tables else ()), iter(photos)
        if (first := list(itertools.islice(found, 1))) or photos.tables:
            opened.enter_context(quiet())
            opened.enter_context(_ray(address))
            for dataset in _datasets(itertools.chain(first, found), photos.tables, shards.names, shard):
                for file, good, bad in _done(dataset, job, known, shard):
                    shards.keep(file)
                    rows, unread = rows + good, unread + bad
                    counter.show(rows, unread)
    classify.conclude(counter, photos, rows, unread, output, "; their rows say why")


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

        self.files.create_dir(f"{self.place}/{_PENDING}")
        with ExitStack() as opening:
            if "://" not in self.job.output:  # an object store has no locks
                opening.enter_context(alone(Path(self.place), "writing rows into"))
            opening.callback(self.files.delete_dir, f"{self.place}/{_PENDING}")
            self.files.delete_dir_contents(f"{self.place}/{_PENDING}")
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
            self.files.move(f"{self.place}/{_PENDING}/{file}", f"{self.place}/part-{self.next:05}.parquet")
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
            self.names.note(name)


@contextmanager
def _ray(address: str) -> Iterator[None]:
    """Ray, joined or started here, keeping to itself: no statistics, no lines, and here no door without a token."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0")
    ours: dict[str, Any] = {}
    if not address:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        ours = {"num_cpus": usable_cores(), "object_store_memory": _STORE, "include_dashboard": False}
        ours["_node_ip_address"] = "127.0.0.1"
    import ray

    key = {"env_vars": {name: os.environ[name] for name in (signature.REQUIRED,) if name in os.environ}}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address or "local", runtime_env=key, **quiet, **ours)
    except Exception as error:  # Ray raises Exception itself where a node does not come up in time
        where = f"reached at {address}" if address else "started here, or type the command without --ray"
        raise SajiError(f"Ray cannot be {where} ({line_of(error)})") from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


def _datasets(photos: Iterator[str], tables: list[str], names: Names, shard: int) -> Iterator[Any]:
    """What there is to do as Ray Data's datasets: one of names, a block a file, and one of each table with photos."""
    import pyarrow as pa
    import ray

    blocks = []
    while some := list(itertools.islice(photos, shard)):
        for photo in some:
            names.note(photo)
        blocks.append(ray.put(pa.table({NAME: pa.array(map(os.fsencode, some), pa.binary())})))
    if blocks:
        yield ray.data.from_arrow_refs(blocks)
    for place in tables:
        files, path = located(place)
        yield ray.data.read_parquet(path, filesystem=files, columns=[NAME, CONTENT])


def _done(dataset: Any, job: Job, known: Names, shard: int) -> Iterator[tuple[str, int, int]]:
    """Let Ray work; of each file as it is written its name, how many photos were classified, and how many not."""
    import ray

    engines = int(ray.cluster_resources().get("GPU" if job.gpu else "CPU", 1))
    work = dataset.map_batches(
        Worker,
        fn_constructor_args=(job, known),
        batch_size=shard,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=engines),
        num_cpus=0 if job.gpu else 1,
        num_gpus=int(job.gpu),
    )
    try:
        for batch in work.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                if row["refusal"]:
                    raise SajiError(row["refusal"])
                yield row["file"], row["rows"], row["unread"]
    except ray.exceptions.RayError as error:
        raise SajiError(f"Ray gave up ({str(error).strip().splitlines()[-1][:200]})") from None


class Worker:
    """An engine in a process of Ray's: photos by name, or with their content, in; the file of their rows out."""

    def __init__(self, job: Job, known: Names) -> None:
        self.job, self.known, self.streams = job, known, usable_cores() if job.gpu else 1
        self.files, place = located(job.output)
        self.pending, self.refusal = f"{place}/{_PENDING}", ""
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

    def __call__(self, photos: Any) -> Any:
        """One row: the file, how many photos were classified and how many not, or why nothing can be (a sentence)."""
        import pyarrow as pa

        file, rows, refusal = "", list[dict[str, Any]](), self.refusal
        items = [] if refusal else list(self._items(photos))
        try:
            if items:
                file, rows = self._written(items)
        except (SajiError, OSError) as error:  # of the output, such as a full disk
            refusal = str(error)
        unread = sum(row["error"] is not None for row in rows)
        return pa.table({"file": [file], "rows": [len(rows) - unread], "unread": [unread], "refusal": [refusal]})

    def _written(self, items: list[tuple[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        tries, file = self._tries(items[0][0]), f"{uuid.uuid4().hex}.parquet"
        far = any(content is not None or "://" in name for name, content in items)
        read = classify.in_order(self._read, items, READERS) if far else map(self._read, items)
        rows = list(classify.in_order(self._row, read, self.streams) if self.streams > 1 else map(self._row, read))
        pq.write_table(pa.Table.from_pylist(rows, _schema()), f"{self.pending}/{file}", filesystem=self.files)
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

    def _items(self, photos: Any) -> Iterator[tuple[str, Any]]:
        """Names, and the content if that came along; a photo of a table that has a row already is left out."""
        inside = CONTENT in photos.column_names
        contents = photos[CONTENT] if inside else itertools.repeat(None)
        for name, content in zip(photos[NAME].to_pylist(), contents, strict=False):
            name = os.fsdecode(name)
            if not inside or name not in self.known:
                yield name, content

    def _read(self, item: tuple[str, Any]) -> tuple[str, Any]:
        name, content = item
        if content is None and "://" not in name:
            return name, str(Path(self.job.folder, name))
        try:
            photo = io.BytesIO((content.as_py() or b"") if content is not None else content_of(name))
        except OSError as error:
            return name, BadPhoto(f"{Path(name).name} cannot be opened: {error.strerror or line_of(error)}")
        photo.name = name  # for the words of what is wrong with it
        return name, photo

    def _row(self, item: tuple[str, Any]) -> dict[str, Any]:
        name, source = item
        row = {"photo": as_text(name), "served_by": self.job.served_by, "error": None}
        try:
            if isinstance(source, BadPhoto):
                raise source
            return row | classify.fields(self.classifier(source))
        except BadPhoto as error:
            return row | {"error": str(error)}


def _schema() -> Any:
    """A row of the output; probabilities with the most likely first, milliseconds of each part."""
    import pyarrow as pa

    text, numbers = pa.string(), pa.map_(pa.string(), pa.float64())
    columns = {"photo": text, "label": text, "sure": pa.bool_(), "probabilities": numbers, "answer": text}
    return pa.schema({**columns, "milliseconds": numbers, "served_by": text, "error": text})
