"""The service with an engine on this GPU, asked by several clients at once, each answer compared."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.service.libraries import require_libraries
from lab.gpu_check.models import model_folder
from lab.gpu_check.step import ROOT, Place
from runtime.benchmark.rows import Row
from runtime.errors import SajiError

CLIENTS, PHOTOS, ROUNDS = 8, 24, 10
ARCHITECTURE = "resnet34"  # of the untrained networks the one that tells photos best apart
ROUNDING = 1e-4  # of a probability


def demo(place: Place) -> Iterator[Row]:
    """Is the engine that the benchmark chooses served to 8 clients at once, each answer that to its own photo?"""
    require_libraries()
    model_folder(place.folder, ARCHITECTURE, place.size)
    _choose(place.folder)
    photos = _photos(place.folder / "asked")
    alone, serves = _alone(place.folder / "deployment.json", photos)
    yield {"serves": serves, "distinct_answers": len({json.dumps(answer) for answer in alone})}
    statuses, wrong, seconds = _asked(place.folder, photos, alone)
    count = CLIENTS * ROUNDS * PHOTOS
    row: Row = {"clients": CLIENTS, "answers": count, "statuses": statuses, "per_second": round(count / seconds, 1)}
    row["says"] = f"{serves}: {count} answers to {CLIENTS} clients, all as alone, {count / seconds:.0f} a second"
    if wrong or statuses != {"200": count}:
        row["wrong"] = f"of {count} answers {wrong} are not those of the engine alone; statuses {statuses}"
    yield row


def _choose(out: Path) -> None:
    """Let the benchmark choose among the candidates of the model folder, all of which need the GPU."""
    command = [sys.executable, "-m", "runtime", "bench", "--out", str(out), "--archs", ARCHITECTURE]
    done = subprocess.run([*command, "--seconds", "10", "--cold-starts", "0"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SajiError((done.stderr.strip() or "the benchmark failed").splitlines()[-1])


def _photos(folder: Path) -> list[bytes]:
    """Encoded pictures, each of them another."""
    from training.photos.drawn import write_sample

    return [path.read_bytes() for path in sorted(write_sample(folder, 5, 320).glob("*/*.jpg"))[:PHOTOS]]


def _alone(deployment: Path, photos: list[bytes]) -> tuple[list[dict[str, float]], str]:
    """The probabilities of each photo, asked one after another in this process, and who answers."""
    import runtime

    with runtime.load(deployment) as classifier:
        if classifier.passed_over:
            raise SajiError(f"the choice cannot be opened: {'; '.join(map(str, classifier.passed_over))}")
        return [classifier(photo).probabilities for photo in photos], classifier.candidate.name


def _asked(out: Path, photos: list[bytes], alone: list[dict[str, float]]) -> tuple[dict[str, int], int, float]:
    """All photos by all clients at once: statuses, how many answers are not the photo's own, and the seconds."""
    from lab.load.clients import connect
    from lab.load.server import serving

    statuses: Counter[str] = Counter()

    def client(number: int, address: str) -> int:
        connection, wrong = connect(address), 0
        for i in [(number * 3 + step) % len(photos) for step in range(ROUNDS * len(photos))]:
            connection.request("POST", "/v1/classify", photos[i], {"content-type": "image/jpeg"})
            answer = connection.getresponse()
            body = answer.read()
            statuses[str(answer.status)] += 1
            wrong += answer.status == 200 and not _same(json.loads(body)["answers"][0]["probabilities"], alone[i])
        return wrong

    with serving("demo", f"--out={out}", "--port=0", "--workers=2") as server:
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            wrong = sum(pool.map(client, range(CLIENTS), [server.address] * CLIENTS))
        return dict(statuses), wrong, time.perf_counter() - started


def _same(answer: dict[str, float], alone: dict[str, float]) -> bool:
    return answer.keys() == alone.keys() and all(abs(answer[name] - alone[name]) <= ROUNDING for name in alone)
