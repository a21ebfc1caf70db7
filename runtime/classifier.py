"""`runtime.load(path)` gives a classifier: a photo in, labelled probabilities out."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import NoReturn

import numpy as np

from runtime import golden, signature
from runtime.backends import BACKENDS, Backend, open_backend, unavailable_because
from runtime.backends.base import require_finite, require_here
from runtime.candidate import Candidate
from runtime.deployment import Deployment, is_setting
from runtime.errors import BadModel, SajiError, Unavailable
from runtime.files import exists, file_lost, reading, sha256_file
from runtime.preprocess import Source, timed_pixels
from runtime.ranges import MOST_THREADS
from runtime.receipt import Receipt
from runtime.spec import NAMED, Answer, ModelSpec
from runtime.terminal import say
from runtime.verdicts import judged_here, same_kind


@dataclass(frozen=True)
class Prediction:
    """What a photo shows: `probabilities` by label, most likely first, and the milliseconds each part took.

    `sure` is False when the model's rejection rule says "none of these". `answer`, one of `runtime.spec.ANSWERS`, also
    tells "unknown" from "absent", where there is nothing of the kind that the model knows.
    """

    probabilities: dict[str, float]
    answer: Answer
    milliseconds: dict[str, float]

    @property
    def sure(self) -> bool:
        """Whether the most likely class is the answer."""
        return self.answer == NAMED

    @property
    def label(self) -> str:
        """The most likely class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """Probability of the most likely class."""
        return self.probabilities[self.label]


class Classifier:
    """A model ready to answer, in the process that opened it. Open one with `load`; use it with `with`, or `close` it.

    `candidate` says what serves (architecture, backend, precision) and `sha256` from which very file, `reason` why it
    was chosen, `passed_over` which better choices could not be opened here, `signer` whose key vouches for the folder.
    """

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        candidate: Candidate,
        reason: str = "",
        passed_over: Sequence[str] = (),
        sha256: str = "",
        signer: str = "",
    ) -> None:
        self.spec, self.backend, self.candidate, self.sha256 = spec, backend, candidate, sha256
        self.signer = signer
        self.reason, self.passed_over = reason, tuple(passed_over)
        self._closed, self._calls, self._lock = False, 0, RLock()
        self._opened_in = self._locked_in = os.getpid()

    @property
    def served_by(self) -> str:
        """Who answers, for the record: the candidate and the beginning of its file's sha256."""
        return " · ".join(part for part in (self.candidate.name, self.sha256[:12]) if part)

    def __call__(self, photo: Source) -> Prediction:
        """Classify one photo: whatever `runtime.preprocess.decode` takes, such as a path or bytes. Raises BadPhoto."""
        return self.classify([photo])[0]

    def classify(self, photos: Iterable[Source]) -> list[Prediction]:
        """Classify several photos in one batch; the milliseconds are those of one photo on average."""
        read = [timed_pixels(photo, self.spec.geometry) for photo in _each(photos)]
        if not read:
            return []
        images, parts = zip(*read, strict=True)
        before = {name: round(sum(part[name] for part in parts) / len(parts), 3) for name in parts[0]}
        answers = self.predict(np.stack(images))
        return [replace(answer, milliseconds={**before, **answer.milliseconds}) for answer in answers]

    def predict(self, images: np.ndarray) -> list[Prediction]:
        """Answers to preprocessed photos, uint8 `[N, size, size, 3]` RGB; their milliseconds are of inference alone."""
        start = time.perf_counter()
        outputs = self.outputs(images)
        milliseconds = {"inference": round(1000 * (time.perf_counter() - start) / max(len(images), 1), 3)}
        return self.predictions(outputs, milliseconds)

    def predictions(self, outputs: np.ndarray, milliseconds: dict[str, float]) -> list[Prediction]:
        """What the model's outputs say by the spec: probabilities, and what each photo is answered."""
        answers = zip(self.spec.probabilities(outputs), self.spec.answers(outputs), strict=True)
        return [self._prediction(row, answer, milliseconds) for row, answer in answers]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Raw logits float32 `[N, C]` of preprocessed photos, uint8 `[N, size, size, 3]` RGB. Raises SajiError else.

        So it does where the engine gives anything but finite numbers.
        """
        return self.spec.logits(self.outputs(images))

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """As `logits`, with all that the model says of each photo side by side, see `runtime.spec.ModelSpec`."""
        require_here(self.backend)
        self._use_own_lock()
        size = self.spec.geometry.size
        is_array = isinstance(images, np.ndarray)
        if not is_array or images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            given = f"{images.dtype} {list(images.shape)}" if is_array else f"a {type(images).__name__}"
            raise SajiError(
                f"the model takes uint8 [N, {size}, {size}, 3] RGB, this is {given}; "
                "call the classifier itself to have photos preprocessed"
            )
        with self._lock:
            if self._closed:
                raise SajiError("this classifier was closed; open it again with runtime.load")
            self._calls += 1
        try:
            if not len(images):  # not every engine has an answer to no photo
                return np.empty((0, len(self.spec.classes) + self.spec.familiarity), np.float32)
            outputs = self.backend.run(np.ascontiguousarray(images))  # PyTorch takes no array that runs backwards
            require_finite(outputs, self.candidate.name)
            return outputs
        finally:
            with self._lock:
                self._calls -= 1
                self._free_if_closed()

    def _prediction(self, row: np.ndarray, answer: Answer, milliseconds: dict[str, float]) -> Prediction:
        order = np.argsort(-row, kind="stable")
        return Prediction({self.spec.classes[i]: float(row[i]) for i in order}, answer, milliseconds)

    def close(self) -> None:
        """Take no more calls, and free the engine once those under way have their answers; again does nothing.

        In a fork the engine, which is not its own, is left alone.
        """
        self._use_own_lock()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._free_if_closed()

    def _use_own_lock(self) -> None:
        if self._locked_in != os.getpid():  # a fork: a thread that is not here may hold the lock
            self._calls, self._lock, self._locked_in = 0, RLock(), os.getpid()

    def _free_if_closed(self) -> None:
        if self._closed and not self._calls and os.getpid() == self._opened_in:
            self.backend.close()

    def __reduce__(self) -> NoReturn:
        raise SajiError("a classifier cannot be copied or sent to another process; open it there with runtime.load")

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _each(photos: Iterable[Source] | Source) -> Iterable[Source]:
    """The photos; what is one photo counts as a list of it."""
    letters = isinstance(photos, str | bytes | bytearray | memoryview) or hasattr(photos, "read")
    many = isinstance(photos, Iterable) and not letters and not (isinstance(photos, np.ndarray) and photos.ndim < 4)
    return photos if many else [photos]  # type: ignore[list-item, return-value]


def load(
    path: str | Path,
    backend: str = "",
    precision: str = "",
    threads: int = 0,
    streams: int = 1,
    require_signature: str | Path = "",
) -> Classifier:
    """Open a classifier.

    `path` is a `deployment.json` (opens its choice, or with a printed reason the next in line; of those of `backend`
    and `precision` where they are given), a model folder with its `model.json` (opens the candidate of `backend`,
    default "ort-cpu", and `precision`, default "fp32"; it must have passed), or a bare `.onnx` or `.pt2` file, which
    has to compute in `precision` where that is given. `threads` of one call, 0 for the deployment's or the engine's
    own; it is opened ready for `streams` calls side by side, a deployment for as many as it names if those are more.
    Of a bare file nobody has checked in what it computes: unless asked for, its candidate's `precision` is "".
    Raises SajiError in one sentence when nothing can be opened.

    A folder of models is trusted: TensorRT engines are code. A `.pt2` that would run more than PyTorch's operators when
    it is opened, by a pickle for example, is refused. With `require_signature`, a public key's PEM file, only a folder
    that its owner signed is opened, whole and unchanged (`runtime.signature.Untrusted` else).
    """
    threads, streams = threads or 0, streams or 1
    for name, value in (("threads", threads), ("streams", streams)):
        if not is_setting(value):
            raise SajiError(f"{name} is {value!r}; give a whole number from 0 to {MOST_THREADS}")
    try:
        path, key = Path(path), Path(require_signature) if require_signature else ""
    except TypeError as error:
        raise SajiError(f"a model and a key are given by their paths, as text or pathlib.Path ({error})") from None
    with reading(path), signature.requiring(key):
        return _loaded(path, backend or "", precision or "", threads, streams)


def _loaded(path: Path, backend: str, precision: str, threads: int, streams: int) -> Classifier:
    if path.name == "model.json":
        path = path.parent
    if not exists(path):
        raise SajiError(f"{path} does not exist; make one with: make train export bench")
    if path.is_dir():
        return _from_folder(path, backend or "ort-cpu", precision or "fp32", threads, streams)
    if path.suffix == ".json":
        return _from_deployment(path, backend, precision, threads, streams)
    if path.suffix in (".onnx", ".pt2") and path.is_file():  # a pipe would be waited for
        if signature.required():
            raise signature.Untrusted(f"{path} alone has no receipt that could be signed; give its folder")
        backend = backend or ("pytorch" if path.suffix == ".pt2" else "ort-cpu")
        return _from_file(path, backend, precision, threads, streams)
    raise SajiError(f"{path} is no model; give a deployment.json, a model folder or an .onnx file")


def _from_deployment(path: Path, backend: str, precision: str, threads: int, streams: int) -> Classifier:
    deployment = Deployment.read(path)
    places = [
        place
        for place in (deployment.choice, *deployment.fallbacks)
        if backend in ("", place.candidate.backend) and precision in ("", place.candidate.precision)
    ]
    if not places:
        names = ", ".join(place.name for place in (deployment.choice, *deployment.fallbacks))
        raise SajiError(f"{path} has no {' '.join(filter(None, (backend, precision)))}; it has {names}")
    passed_over: list[str] = []
    for place in places:
        folder = path.parent / place.folder
        try:
            with reading(folder):
                _require_pass(place.candidate)
                receipt, signer = _trusted(folder)
                receipt.verify(folder, place.candidate.file)
                receipt.require_same(folder, place.candidate.file, place.sha256)
                candidate = _passed_here(_of_receipt(place.candidate, receipt), folder, receipt)
                settings = threads or place.threads, max(streams, place.streams)
                engine = _opened(candidate, folder, receipt, *settings)
        except signature.Untrusted:
            raise
        except SajiError as error:
            passed_over.append(f"{place.candidate.name}: {error}")
            say(f"saji: passing over {passed_over[-1]}")
            continue
        reason = (
            deployment.reason if same_kind(deployment.machine) else "chosen on another machine, judged anew on this"
        )
        if passed_over:
            reason = f"next in line after {len(passed_over)} that cannot open here"
        return Classifier(receipt.spec, engine, candidate, reason, passed_over, place.sha256, signer)
    raise Unavailable(f"none of the {len(passed_over)} choices in {path} can be opened here; choose again: make bench")


def _from_folder(folder: Path, backend: str, precision: str, threads: int, streams: int) -> Classifier:
    receipt, signer = _trusted(folder)
    named = [c for c in receipt.candidates if (c.backend, c.precision) == (backend, precision) and c.servable]
    if not named:
        names = sorted({f"{c.backend} {c.precision}" for c in receipt.candidates if c.verdict == "pass" and c.servable})
        raise SajiError(f"{folder} has no candidate {backend} {precision}; these passed: {', '.join(names) or 'none'}")
    receipt.verify(folder, named[0].file)
    candidate = _passed_here(named[0], folder, receipt)
    engine = _opened(candidate, folder, receipt, threads, streams)
    sha256 = receipt.files[candidate.file].sha256
    return Classifier(receipt.spec, engine, candidate, "asked for by name", sha256=sha256, signer=signer)


def _trusted(folder: Path) -> tuple[Receipt, str]:
    """A folder's receipt and its signer. Where a signature is required the whole folder has to be as it was signed."""
    receipt, signer = Receipt.read_signed(folder)
    if signature.required():
        receipt.verify_whole(folder)
    if not receipt.spec_sha256:  # of an earlier version
        receipt.verify(folder, "model.onnx")
        if spec_of(folder / "model.onnx") != receipt.spec:
            raise BadModel(f"{folder / 'model.json'} has another spec than model.onnx carries; export the model again")
    return receipt, signer


def _of_receipt(candidate: Candidate, receipt: Receipt) -> Candidate:
    """A deployment's candidate as the receipt has it, by whose bounds it is judged and which may be signed."""
    for each in receipt.candidates:
        if each.key() == candidate.key():
            return each
    kind = signature.Untrusted if signature.required() else BadModel
    raise kind(f"{candidate.name} is not in the receipt of its folder; choose again with: make bench")


def _passed_here(candidate: Candidate, folder: Path, receipt: Receipt) -> Candidate:
    """The candidate with the verdict that holds on this machine. Raises SajiError unless it passed."""
    candidate = judged_here(candidate, folder, receipt)
    _require_pass(candidate)
    return candidate


def _require_pass(candidate: Candidate) -> None:
    if not candidate.servable:
        raise SajiError(f"{candidate.name} is a file check, which is not served")
    if candidate.verdict != "pass":
        why = "; ".join(candidate.reasons) or "without a reason"
        raise SajiError(f"{candidate.name} is not served, its verdict is {candidate.verdict}: {why}")


def _opened(candidate: Candidate, folder: Path, receipt: Receipt, threads: int, streams: int) -> Backend:
    """Open the engine and let it answer the golden picture: it leaves here right and warm, or not at all."""
    engine = candidate.open(folder, threads, streams, receipt.files[candidate.file].sha256)
    try:
        golden.check(engine, folder, receipt, candidate)
    except BaseException:  # such as an OSError of a file beside it, or Ctrl-C
        engine.close()
        raise
    return engine


def _from_file(path: Path, backend: str, precision: str, threads: int, streams: int) -> Classifier:
    reason = unavailable_because(backend)
    if reason:
        raise Unavailable(reason)
    spec = spec_of(path)
    known = {offer.precision for offer in BACKENDS[backend].offers}
    if precision and precision not in known:
        raise SajiError(f"{backend} computes in {', '.join(sorted(known))}, not in {precision!r}; name one of these")
    engine = open_backend(backend, path, precision or "fp32", threads=threads, streams=streams)
    candidate = Candidate(spec.architecture, path.name, backend, precision)
    try:
        if precision:
            engine.precision_share()  # which not every engine checks as it opens
        _require_answer(engine, path, spec)
    except BaseException:  # such as an OSError of a file beside it, or Ctrl-C
        engine.close()
        raise
    reason = "opened as a bare file, without a verdict"
    return Classifier(spec, engine, candidate, reason, sha256=sha256_file(path))


def _require_answer(engine: Backend, path: Path, spec: ModelSpec) -> None:
    """Raise BadModel where the first photo would: engines open files that they cannot compute."""
    size = spec.geometry.size
    try:
        outputs = engine.run(np.zeros((1, size, size, 3), np.uint8))
    except Unavailable:
        raise
    except SajiError as error:
        raise BadModel(f"{path} opens, but does not compute ({error}); export it again") from None
    if outputs.shape != (1, expected := len(spec.classes) + spec.familiarity):
        told = f"{len(spec.classes)} classes{' and familiarity' if spec.familiarity else ''}"
        raise BadModel(
            f"{path} answers with {list(outputs.shape)}, its spec with [1, {expected}] ({told}); export it again"
        )


def spec_of(path: Path) -> ModelSpec:
    """The spec that a bare `.onnx` or `.pt2` file carries. Raises BadModel where there is none."""
    if why := file_lost(path):
        raise BadModel(f"{path} {why}")
    if path.suffix == ".pt2":
        from runtime.backends.pytorch import spec_text

        text = spec_text(path)
    else:
        try:
            import onnxruntime

            from runtime.backends.onnxruntime import require_contract
        except ImportError:
            raise Unavailable(f"reading {path.name} alone needs onnxruntime; give its folder with model.json") from None
        try:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            text = session.get_modelmeta().custom_metadata_map.get("spec", "")  # raises where one is no text
        except Exception as error:  # onnxruntime raises its own classes, which have no public base
            raise BadModel(f"{path} is no ONNX model that opens ({str(error).splitlines()[0][:120]})") from None
        if text:
            require_contract(session, path)
    if not text:
        raise BadModel(
            f"{path} carries no saji spec (classes, size), so its answers would be guesses; export it with saji"
        )
    return ModelSpec.from_json(text, str(path))
