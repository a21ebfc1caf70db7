"""`python -m runtime classify --ray`: as many photos as there are, on all cores of this machine or of a Ray cluster.

Ray Data deals out their names, some hundreds at once, to an engine on each core. Its process writes their rows to a
file under a temporary name; this one, as soon as it is told, moves the file to where it counts. So whoever dies on the
way, and however often Ray tries again, a photo has one row. What a killed run left undone the next one tells by the
names in the files that are there. (Ray Data's own checkpoints need a table to begin with, and are a second record of
what is done.)
"""

import argparse
import itertools
import logging
import os
import pickle
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from runtime import classify, cluster, signature
from runtime.backends import BACKENDS
from runtime.bulk.places import absolute
from runtime.bulk.shards import Job, Shards
from runtime.bulk.sources import CONTENT, NAME, Everywhere, Names, table
from runtime.bulk.worker import PIECE, Worker
from runtime.classifier import load
from runtime.command_line import require_extra
from runtime.environment import usable_cores
from runtime.errors import SajiError, Unavailable
from runtime.terminal import quiet

SHARD = 500  # photos: some seconds of a core, which is what a kill costs
_STORE = 2**28  # bytes for what is between processes: names


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
        known, work = Names(shards.names if photos.tables else ()), _pieces(photos, shards.names, shard)
        if first := list(itertools.islice(work, 1)):
            opened.enter_context(quiet())
            opened.enter_context(_ray(address))
            for file, good, bad in _done(itertools.chain(first, work), job, known, shard):
                shards.keep(file)
                rows, unread = rows + good, unread + bad
                counter.show(rows, unread)
    classify.conclude(counter, photos, rows, unread, output, "; their rows say why")


@contextmanager
def _ray(address: str) -> Iterator[None]:
    """Ray, joined or started here for a while, where the key that signatures must be of is every process's."""
    if not address:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # nobody else is to come in
    key = {name: os.environ[name] for name in (signature.REQUIRED,) if name in os.environ}
    cluster.join(address, {"num_cpus": usable_cores(), "object_store_memory": _STORE}, runtime_env={"env_vars": key})
    import ray

    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


def _pieces(photos: Everywhere, names: Names, shard: int) -> Iterator[bytes]:
    """What there is to do, pickled: so many names at a time, then each row group of the tables that hold photos."""
    found = (names.noted(photo) for photo in photos)  # at once, so that a name that comes again is passed over
    while some := list(itertools.islice(found, shard)):
        yield pickle.dumps(some)
    for place in photos.tables:
        for file in table(place).get_fragments():
            yield from map(pickle.dumps, file.split_by_row_group())


def _done(pieces: Iterator[bytes], job: Job, known: Names, shard: int) -> Iterator[tuple[str, int, int]]:
    """Let Ray work; of each file as it is written its name, how many photos were classified, and how many not.

    Ray deals out names and row groups, and the engines read them: its own readers would wait for a core for ever, since
    the engines have them all (github.com/ray-project/ray/issues/44687), and photos would pass through its store.
    """
    import pyarrow as pa
    import ray

    cpus, gpus = int(not job.gpu), int(job.gpu)
    if not (engines := cluster.room(cpus, gpus)):
        raise Unavailable(
            f"{job.served_by} needs a {'GPU' if job.gpu else 'CPU'} of a node, and Ray counts {cluster.there()}; start "
            "a node that has one (see there with: ray status), or name another model with --model"
        )
    work = ray.data.from_arrow_refs([ray.put(pa.table({PIECE: [piece]})) for piece in pieces]).map_batches(
        Worker,
        fn_constructor_args=(job, known, shard),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=engines),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    try:
        for batch in work.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                if row["refusal"]:
                    raise SajiError(row["refusal"])
                yield row["file"], row["rows"], row["unread"]
    except ray.exceptions.RayError as error:
        raise SajiError(f"Ray gave up ({str(error).strip().splitlines()[-1][:200]})") from None
