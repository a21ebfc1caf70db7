"""`python demo/app.py`: the page in a browser, served by what `deployment.json` chose."""

import argparse
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np

if not __package__:  # run as a plain path: Python put demo/ first, where our names would shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from runtime.classifier import Classifier, load
from runtime.deployment import Deployment
from runtime.errors import SajiError, exit_with_one_sentence, missing_extra

WARM_UP = 3  # first calls allocate memory and, on some engines, compile kernels
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


def main() -> None:
    """Read the command line, open and warm the model, serve the page until Ctrl-C."""
    arguments = _arguments()
    path = arguments.deployment or arguments.out / "deployment.json"
    if arguments.top < 1:
        raise SajiError(f"--top {arguments.top} shows no class; give 1 or more")
    with load(path) as classifier, listen(arguments.host, arguments.port) as listener:
        deployment = Deployment.read(path)
        examples = pictures_in(arguments.examples) if arguments.examples else shipped(path, deployment, classifier)
        try:  # only now: the import takes seconds, and what is wrong above should be said at once
            import uvicorn

            from demo.page import build_page, web_app
        except ModuleNotFoundError as error:
            raise missing_extra(error.name or "gradio", "demo") from None
        with tempfile.TemporaryDirectory(prefix="saji-demo-", ignore_cleanup_errors=True) as uploads:
            # Uploads are somebody's photos: they go with this process, and no other user's demo shares the folder
            os.environ["GRADIO_TEMP_DIR"] = uploads
            app = web_app(build_page(classifier, examples, arguments.top, deployment))
            warm(classifier)
            address = f"http://{arguments.host}:{listener.getsockname()[1]}"
            print(f"serving {classifier.candidate.name} on {address}", file=sys.stderr, flush=True)
            # The way a container is stopped: leave through the `with`s, so that nothing of the uploads stays
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            # An open page holds a connection: without a bound, Ctrl-C would wait until it is closed
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
            uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises SajiError when the address cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise SajiError(f"cannot listen on {host} port {port}: {reason}; choose with --port or --host") from None


def warm(classifier: Classifier) -> None:
    """Answer a few blank photos, so that the first visitor's latency is everybody's."""
    size = classifier.spec.geometry.size
    for _ in range(WARM_UP):
        classifier(np.zeros((size, size, 3), np.uint8))


def shipped(path: Path, deployment: Deployment, classifier: Classifier) -> list[Path]:
    """The example pictures that export put beside the model that serves; none is fine."""
    for place in (deployment.choice, *deployment.fallbacks):
        if place.candidate.key() == classifier.candidate.key():
            return sorted((path.parent / place.folder / "examples").glob("*.png"))
    return []


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly in a folder. Raises SajiError when there is none."""
    found = sorted(file for file in folder.glob("*") if file.suffix.lower() in PICTURES)
    if not found:
        raise SajiError(
            f"{folder} holds no example picture ({', '.join(sorted(PICTURES))}); give another with --examples"
        )
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Serve the chosen model as a page in the browser."
    )
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="folder of all artefacts (artifacts)")
    parser.add_argument("--deployment", type=Path, help="the choice to serve (OUT/deployment.json)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets the network in (127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on; 0 takes a free one (7860)")
    parser.add_argument("--examples", type=Path, help="folder of example pictures (those that export wrote)")
    parser.add_argument("--top", type=int, default=5, help="classes that an answer shows (5)")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with_one_sentence(main)
