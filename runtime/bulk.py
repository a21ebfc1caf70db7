"""`python -m runtime classify --ray`: as many photos as there are, on all cores of this machine or of a Ray cluster.

Ray Data deals them out, some hundred at a time, to an engine on each core. Its process writes their rows to a file
under a temporary name; this one, as soon as it is told, moves the file to where it counts. So whoever dies on the way, and
however often Ray tries again, a photo has one row. What a killed run left undone the next one tells by the names in the
files that are there. (Ray Data's own checkpoints need a table to begin with, and are a second record of what is done.)
"""

import argparse
import functools
import hashlib
import io
import itertools
import logging
import os
import re
import secrets
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime import classify, signature
from runtime.backends import BACKENDS
from runtime.classifier import Classifier, load
from runtime.classify import in_order
from runtime.command_line import require_extra
from runtime.environment import usable_cores
from runtime.errors import BadPhoto, SajiError
from runtime.files import alone, left_by_programs
from runtime.preprocess import SUFFIXES, Source
from runtime.rowfile import as_text

SHARD = 500  # photos: some seconds of a core, which is what a kill costs, and a file of 100 KB
READERS = 8  # photos that a process reads ahead from a network
TRIES = 5  # of a shard whose process dies, before a photo in it is taken for the cause
NAME, CONTENT = "path", "bytes"  # as Ray Data calls the columns of files that it reads
_PENDING, _FILE = ".pending", re.compile(r"part-(\d+)\.parquet")
_STORE = 2**30  # bytes for what is between processes: names, and photos that came in a table


def add_to(verbs: Any) -> None:
    """Add `classify` to the subparsers of `python -m runtime`, with --ray."""
    verb = classify.add_to(verbs)
    words = (
        "on all cores of a Ray cluster, without an ADDRESS of this machine, into files of Parquet in the folder or URI "
        f"--output; photos are then also URIs, such as s3://bucket/folder, and .parquet files with a column {NAME}, and "
        f"{CONTENT} where the photos are in there"
    )
    verb.add_argument("--ray", nargs="?", metavar="ADDRESS", const="", help=words)
    verb.add_argument("--shard", type=int, default=SHARD, help="photos in a file of --ray's output (%(default)s)")
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
    counter = classify.Counter(os.isatty(2))
    with load(model, threads=1) as classifier:
        job = _job(classifier, model, output)
        counter.say(classify.introduction(classifier))
    with ExitStack() as opened:
        shards = opened.enter_context(Shards(job))
        photos, rows, unread = Everywhere(places, counter.say, shards.names), 0, 0
        known = shards.names.sorted() if photos.tables else np.array([], "S16")
        opened.enter_context(_ray(address))
        for dataset in _datasets(photos, shards.names, shard):
            for name, good, bad in _done(dataset, job, known, shard):
                shards.keep(name)
                rows, unread = rows + good, unread + bad
                counter.show(rows, unread)
    classify.conclude(counter, photos, rows, unread, output, "; their rows say why")


@dataclass(frozen=True)
class Job:
    """What a process must know: the model by its path, who serves, where rows go and relative names begin.

    An engine classifies `streams` photos at a time, and has a GPU of its own where it needs a `gpu`.
    """

    model: str
    served_by: str
    output: str
    folder: str
    streams: int
    gpu: bool


def _job(classifier: Classifier, model: Path, output: str) -> Job:
    gpu = BACKENDS[classifier.candidate.backend].gpu
    streams = usable_cores() if gpu else 1
    return Job(str(model.absolute()), classifier.served_by, _whole(output), str(Path.cwd()), streams, gpu)


class Names:
    """Names of photos that have a row, or are about to, as 16 bytes each."""

    def __init__(self) -> None:
        self.digests: set[bytes] = set()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _digest(name) in self.digests

    def add(self, name: str) -> None:
        """Note one."""
        self.digests.add(_digest(name))

    def sorted(self) -> np.ndarray:
        """All of them, as processes share it without a copy."""
        return np.array(sorted(self.digests), dtype="S16")


def _digest(name: str) -> bytes:
    return hashlib.blake2b(as_text(name).encode(), digest_size=16).digest()


class Shards:
    """The files of Parquet in a job's output, which this process alone adds to. Use it as a context manager.

    `names` are the photos that they hold. Raises SajiError where another model wrote them, or another process does.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.names, self.opened = job, Names(), ExitStack()
        self.files, self.place = located(job.output)
        self.next = 0

    def __enter__(self) -> "Shards":
        from pyarrow.fs import FileSelector, FileType

        self.files.create_dir(self.place)
        with ExitStack() as opening:
            if "://" not in self.job.output:  # an object store has no locks
                opening.enter_context(alone(Path(self.place), "writing rows into"))
            for info in self.files.get_file_info(FileSelector(self.place)):
                if info.type == FileType.File and (named := _FILE.fullmatch(info.base_name)):
                    self.next = max(self.next, int(named[1]) + 1)
                    self._note(info.path)
            self._clear()
            self.files.create_dir(f"{self.place}/{_PENDING}")
            self.opened = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self.opened:
            self._clear()

    def keep(self, pending: str) -> None:
        """Let a file that a process wrote count from now on; "" is none."""
        if pending:
            self.files.move(f"{self.place}/{_PENDING}/{pending}", f"{self.place}/part-{self.next:05}.parquet")
            self.next += 1

    def _clear(self) -> None:
        from pyarrow.fs import FileType

        if self.files.get_file_info(f"{self.place}/{_PENDING}").type == FileType.Directory:
            self.files.delete_dir(f"{self.place}/{_PENDING}")

    def _note(self, path: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path, columns=["photo", "served_by"], filesystem=self.files)
        except (pa.ArrowException, OSError) as error:
            raise SajiError(f"{path} is no file of rows ({_line(error)}); remove it to have its photos anew") from None
        for served_by in set(table["served_by"].to_pylist()) - {self.job.served_by}:
            raise SajiError(
                f"{self.job.output} holds answers of {served_by}, which this model ({self.job.served_by}) would go on "
                "with; name another folder for --output, or that model with --model"
            )
        for name in table["photo"].to_pylist():
            self.names.add(name)


class Everywhere(classify.Photos):
    """Photos in folders and lists, as `classify` finds them, by URI, and by the names in files of Parquet.

    `tables` are the files of Parquet that hold the photos themselves, which are not iterated over.
    """

    def __init__(self, places: Sequence[str], say: classify.Say, done: Names) -> None:
        self.tables = [
            place for place in places if place.endswith(".parquet") and CONTENT in _table(place).schema.names
        ]
        super().__init__([place for place in places if place not in self.tables], say, done)

    def _in(self, place: str) -> Iterator[str]:
        if place.endswith(".parquet"):
            for batch in _table(place).to_batches(columns=[NAME]):
                yield from batch[NAME].to_pylist()
        elif "://" in place:
            yield from self._by_uri(place.rstrip("/"))
        else:
            yield from super()._in(place)

    def _by_uri(self, place: str) -> Iterator[str]:
        from pyarrow.fs import FileSelector, FileType

        files, root = located(place)
        if files.get_file_info(root).type != FileType.Directory:
            yield place
            return
        folders, found = [root], False
        while folders:
            infos = sorted(files.get_file_info(FileSelector(folders.pop())), key=lambda info: info.base_name)
            infos = [info for info in infos if not left_by_programs(info.base_name)]
            folders += [info.path for info in reversed(infos) if info.type == FileType.Directory]
            names = [info.path for info in infos if info.type == FileType.File]
            photos = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
            self.left_alone += len(names) - len(photos)
            found = found or bool(photos)
            yield from (place + name[len(root) :] for name in photos)
        if not found:
            raise SajiError(f"{place} holds no photo; photos end with .jpg, .png, .webp, .heic …")


def _table(place: str) -> Any:
    """A file or folder of Parquet, unread."""
    import pyarrow as pa
    import pyarrow.dataset

    files, path = located(place)
    try:
        table = pyarrow.dataset.dataset(path, filesystem=files, format="parquet")
    except (pa.ArrowException, OSError) as error:
        raise SajiError(f"{place} is no file of Parquet that can be read ({_line(error)})") from None
    if NAME not in table.schema.names:
        columns = ", ".join(table.schema.names)
        raise SajiError(f"{place} has the columns {columns}; call that of the photos' names {NAME}, in it {CONTENT}")
    return table


def located(place: str) -> tuple[Any, str]:
    """The file system (of pyarrow) of a path or URI, and the path in it."""
    from pyarrow.fs import LocalFileSystem

    if "://" not in place:
        return LocalFileSystem(), str(Path(place).absolute())
    scheme, _, rest = place.partition("://")
    host, _, path = rest.partition("/")
    files, root = _file_system(f"{scheme}://{host}/")
    return files, f"{root.rstrip('/')}/{path}".rstrip("/")


@functools.cache
def _file_system(root: str) -> tuple[Any, str]:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        files, path = FileSystem.from_uri(root)
    except (pa.ArrowException, OSError) as error:
        raise SajiError(f"{root} cannot be reached ({_line(error)}); give a folder, or a URI such as s3://…") from None
    return files, path


def _whole(place: str) -> str:
    return place.rstrip("/") if "://" in place else str(Path(place).absolute())


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


@contextmanager
def _ray(address: str) -> Iterator[None]:
    """Ray, joined or started here, keeping to itself: no statistics, no lines, and here no door without a token."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_BACKEND_LOG_LEVEL="fatal")
    if not address:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray

    ours: dict[str, Any] = {"num_cpus": usable_cores(), "object_store_memory": _STORE, "include_dashboard": False}
    if not address:
        ours["_node_ip_address"] = "127.0.0.1"
    key = {name: value for name, value in os.environ.items() if name == signature.REQUIRED}
    try:
        ray.init(
            address=address or "local", runtime_env={"env_vars": key}, log_to_driver=False,
            logging_level=logging.ERROR, **({} if address else ours),
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SajiError(f"Ray cannot be reached at {address or 'this machine'} ({_line(error)})") from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


def _datasets(photos: Everywhere, names: Names, shard: int) -> Iterator[Any]:
    """What there is to do as Ray Data's datasets: one of names, a block a file, and one of each table with photos."""
    import pyarrow as pa
    import ray

    blocks = []
    for some in _batched(photos, shard):
        for photo in some:
            names.add(photo)
        blocks.append(ray.put(pa.table({NAME: pa.array(map(os.fsencode, some), pa.binary())})))
    if blocks:
        yield ray.data.from_arrow_refs(blocks)
    for place in photos.tables:
        files, path = located(place)
        yield ray.data.read_parquet(path, filesystem=files, columns=[NAME, CONTENT])


def _batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


def _done(dataset: Any, job: Job, known: Any, shard: int) -> Iterator[tuple[str, int, int]]:
    """Let Ray work; of each file as it is written its name, how many photos were classified, and how many not."""
    import ray

    cluster = ray.cluster_resources()
    size = int(cluster.get("GPU" if job.gpu else "CPU", 1))
    work = dataset.map_batches(
        Worker, fn_constructor_args=(job, known), batch_size=shard, batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=size), num_cpus=0 if job.gpu else 1, num_gpus=int(job.gpu),
        ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": TRIES},
    )  # fmt: skip
    for batch in work.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from zip(*(batch[name].to_pylist() for name in ("file", "rows", "unread")), strict=True)


class Worker:
    """An engine in a process of Ray's: photos by name, or with their content, in; the file with their rows out."""

    def __init__(self, job: Job, known: np.ndarray) -> None:
        self.job, self.known = job, known
        self.classifier = load(job.model, threads=1, streams=job.streams)
        if self.classifier.served_by != job.served_by:
            raise SajiError(
                f"a node would answer by {self.classifier.served_by}, others by {job.served_by}, and answers of two "
                "models are never mixed; give --model a folder, whose one engine all nodes have"
            )

    def __call__(self, photos: Any) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = list(in_order(self._row, in_order(self._read, self._items(photos), READERS), self.job.streams))
        file = f"{uuid.uuid4().hex}.parquet" if rows else ""
        if rows:
            files, place = located(self.job.output)
            pq.write_table(pa.Table.from_pylist(rows, _schema()), f"{place}/{_PENDING}/{file}", filesystem=files)
        unread = sum(row["error"] is not None for row in rows)
        return pa.table({"file": [file], "rows": [len(rows) - unread], "unread": [unread]})

    def _items(self, photos: Any) -> Iterator[tuple[str, bytes | None]]:
        """Names with their content, if that came along; a photo of a table that has a row already is left out."""
        names = [os.fsdecode(name) if isinstance(name, bytes) else name for name in photos[NAME].to_pylist()]
        if CONTENT not in photos.column_names:
            yield from ((name, None) for name in names)
            return
        for name, content in zip(names, photos[CONTENT], strict=True):
            digest = np.array(_digest(name), self.known.dtype)
            place = np.searchsorted(self.known, digest)
            if place == len(self.known) or self.known[place] != digest:
                yield name, content.as_py() or b""

    def _read(self, item: tuple[str, bytes | None]) -> tuple[str, Source | BadPhoto]:
        name, content = item
        if content is None and "://" not in name:
            return name, str(Path(self.job.folder, name))
        try:
            if content is None:
                files, path = located(name)
                with files.open_input_file(path) as file:
                    content = file.read()
        except OSError as error:
            why = error.strerror or _line(error)
            return name, BadPhoto(f"{Path(name).name} cannot be opened: {why}")
        photo = io.BytesIO(content)
        photo.name = name  # for the words of what is wrong with it
        return name, photo

    def _row(self, item: tuple[str, Source | BadPhoto]) -> dict[str, Any]:
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
