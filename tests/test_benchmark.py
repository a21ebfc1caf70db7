"""The benchmark: what may be said of a figure, what disturbed it, and what a race of two files shows."""

import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from lab.claims import speed, workloads
from lab.claims.comparison import Claim, compare, in_process
from runtime.benchmark import command, contestant, rows, scenarios, watch, worker
from runtime.benchmark.run import Options
from runtime.benchmark.table import comparison, draw, frontier, table
from runtime.benchmark.watch import Disturbance
from runtime.candidate import Candidate
from runtime.classifier import Classifier
from runtime.command_line import Parser, from_flags
from runtime.errors import NotAsAsked, SajiError
from runtime.nvidia import Driver, Gpu
from runtime.receipt import Receipt, file_facts
from runtime.spec import Geometry, ModelSpec
from runtime.speed_ratio import compared, percentile, samples_needed

DRIFT = np.array([1.0, 1.3, 0.9, 2.0, 1.1, 1.0, 1.6, 0.95])  # what a shared machine does from round to round


def test_a_pair_is_told_apart_by_its_rounds_though_the_machine_drifts() -> None:
    ratio = compared(2.0 * DRIFT, 3.0 * DRIFT)
    assert ratio.verdict == "faster" and ratio.ratio == pytest.approx(1.5) and ratio.low > 1.49
    assert compared(3.0 * DRIFT, 2.0 * DRIFT).verdict == "slower"
    assert compared(DRIFT, DRIFT * 1.029).verdict == "tie" and compared(DRIFT, DRIFT * 1.031).verdict == "faster"


def test_what_the_rounds_do_not_show_is_inconclusive() -> None:
    lots = np.random.default_rng(1)
    assert compared(DRIFT, DRIFT * lots.choice([0.5, 2.0], len(DRIFT))).verdict == "inconclusive"
    assert compared([1.0] * 4, [5.0] * 4).verdict == "inconclusive"  # of so few rounds
    assert compared([1.0] * contestant.ROUNDS, [5.0] * contestant.ROUNDS).verdict == "faster"
    assert compared(DRIFT, 1.2 * DRIFT, paired=False).verdict == "inconclusive"  # two runs, each with its own drift
    touching = compared([1.0] * 12, [0.5] * 6 + [1.0] * 6)
    assert touching.high == 1 and touching.verdict == "inconclusive"


def test_verdicts_hold_the_error_rate_they_claim() -> None:
    """Of two equal candidates, at most about one pair in twenty is called faster or slower."""
    lots = np.random.default_rng(0)
    said = [compared(*lots.lognormal(0, 0.2, (2, 15))).verdict for _ in range(100)]
    assert sum(verdict in ("faster", "slower") for verdict in said) <= 10


def test_a_row_has_the_figures_of_the_last_round(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"stands for a model")
    candidate = Candidate("resnet34", "a.onnx", "ort-cpu", "fp32")
    spec = ModelSpec("m", "resnet34", ("a", "b"), Geometry.for_size(32))
    entrant = contestant.Contestant(candidate, tmp_path)
    entrant.measurements["server", 1] = [scenarios.Measurement(figures={"rate": rate}) for rate in (1, 2, 3)]
    receipt = Receipt(spec, file_facts(tmp_path, ["a.onnx"]), (candidate,), "0" * 64, {})
    assert [row["rate"] for row in rows.rows_of(entrant, receipt, "benchmark", 1.0)] == [3]


def test_a_percentile_is_given_only_where_the_sample_bounds_it() -> None:
    assert [samples_needed(percent) for percent in (50, 90, 95, 99)] == [6, 36, 72, 368]
    samples = list(np.random.default_rng(0).normal(10, 1, 367))
    assert percentile(samples, 99) is None
    assert percentile([*samples, 10.0], 99) == pytest.approx(12.3, abs=1)


def test_causes_are_named_from_what_the_machine_did() -> None:
    quiet = Disturbance(seconds=2.0, steal=0.0, others=0.01, mhz=3000.0, celsius=60.0)
    assert watch.causes_of([quiet] * 5) == []
    assert watch.causes_of([quiet, replace(quiet, others=1.2, steal=0.5, mhz=2000.0, celsius=97.0)]) == [
        "other processes took 30% of the processors",
        "the hypervisor gave 12% of the processors to others",
        "the clock moved between 2000 and 3000 MHz",
        "the processor reached 97 °C",
    ]
    assert watch.causes_of([Disturbance(1.0, gpu=("the GPU was slowed down by heat",))] * 2)


def test_the_other_contestants_are_no_disturbance(monkeypatch: pytest.MonkeyPatch) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with contextlib.closing(other.stdin):  # type: ignore[type-var]
        assert not watch._of_this_benchmark(other.pid) and watch._of_this_benchmark(os.getpid())
        monkeypatch.setattr(os, "getppid", os.getpid)  # as the other one sees it
        assert watch._of_this_benchmark(other.pid)
    other.wait()


def test_a_busy_neighbour_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        began = watch.Watch()
        busy.wait(0.4)
    except subprocess.TimeoutExpired:
        assert began.stop().others > 0.05
    finally:
        busy.kill()


def test_others_took_what_was_used_and_not_by_us_and_waiting_for_disks_is_no_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = {"user": 10.0, "nice": 0.0, "system": 5.0, "irq": 0.0, "softirq": 0.0, "iowait": 1.0, "steal": 1.0}
    later = used | {"user": 14.0, "system": 5.5, "softirq": 0.5, "iowait": 2.0, "steal": 1.5}
    wall, own, cpu = (iter(both) for both in ((100.0, 103.0), (2.0, 4.0), (used, later)))
    monkeypatch.setattr(watch, "time", SimpleNamespace(perf_counter=wall.__next__, process_time=own.__next__))
    monkeypatch.setattr(watch, "psutil", SimpleNamespace(cpu_times=lambda: SimpleNamespace(**next(cpu))))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    told = watch.Watch().stop()
    assert (told.seconds, told.others, told.steal) == (6, 3, 0.5)


class Steady:
    """An engine whose call takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, images: np.ndarray) -> np.ndarray:
        scenarios.time.sleep(self.seconds)
        return np.zeros((len(images), 2), np.float32)

    def precision_share(self) -> dict[str, float]:
        return {"fp32": 1.0}

    def close(self) -> None: ...


def bench(seconds: float, streams: int = 1) -> scenarios.Bench:
    spec = ModelSpec("steady", "resnet34", ("a", "b"), Geometry.for_size(8))
    classifier = Classifier(spec, Steady(seconds), Candidate("resnet34", "model.onnx", "ort-cpu", "fp32"))
    photo = io.BytesIO()
    Image.new("RGB", (20, 16), "red").save(photo, "PNG")
    return scenarios.Bench(classifier, np.zeros((3, 8, 8, 3), np.uint8), photo.getvalue(), streams)


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [
        (lambda call: [0.4, 0.2, 0.1, 0.1, 0.1, 0.1][call // 2], 8),  # the fourth two are as fast as the third
        (lambda call: 0.125 if call // 2 % 2 else 0.25, 16),  # never: three seconds are over
    ],
)
def test_a_warm_up_ends_when_calls_get_no_faster_or_after_three_seconds(
    seconds: Callable[[int], float], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []
    monkeypatch.setattr(scenarios, "time", SimpleNamespace(perf_counter=lambda: 100 + sum(taken)))
    scenarios.settle(lambda: taken.append(seconds(len(taken))), 2)
    assert len(taken) == calls


def test_offline_streams_work_side_by_side() -> None:
    (alone,) = scenarios.offline(bench(0.02), 4, 0.2).samples
    (together,) = scenarios.offline(bench(0.02, streams=4), 4, 0.2).samples
    assert alone > 15 and together < 0.5 * alone


def test_offline_lasts_as_long_as_it_is_asked_to_and_three_calls_in_any_case() -> None:
    calls: list[int] = []
    counted = bench(0)
    counted.classifier.backend.run = lambda images: calls.append(1) or np.zeros((len(images), 2), np.float32)
    scenarios.offline(counted, 1, 0)
    assert len(calls) == 3
    scenarios.offline(counted, 1, 0.05)
    assert len(calls) > 10


def test_a_row_sums_up_the_calls_of_all_rounds_and_names_causes_where_they_do_not_repeat() -> None:
    def figures(*rounds: tuple[float, ...]) -> dict:
        busy = Disturbance(seconds=1.0, others=0.5)
        return rows._latency([scenarios.Measurement(samples, disturbance=busy) for samples in rounds], 8)

    told = figures((10.0, 20.0), (30.0, 40.0))
    assert (told["p25"], told["milliseconds"], told["p75"], told["images_per_second"]) == (17.5, 25, 32.5, 320)
    assert told["rounds"] == 2 and told["unstable"] and told["causes"] == ["other processes took 50% of the processors"]
    steady = figures((10.0, 11.0), (11.0, 12.0))
    assert not steady["unstable"] and not steady["causes"]


def test_a_row_tells_the_time_on_the_device_where_the_backend_does() -> None:
    def figures(bench: scenarios.Bench) -> dict:
        return rows._latency([scenarios.single_stream(bench, 1, 0)], 1)

    plain, gpu = bench(0.001), bench(0.001)
    gpu.classifier.backend.device_milliseconds = lambda images: 0.25  # type: ignore[attr-defined]
    assert figures(plain)["milliseconds_device"] is figures(plain)["timed_device"] is None
    told = figures(gpu)
    assert told["milliseconds_device"] == 0.25 < told["milliseconds"] and "CUDA event" in told["timed_device"]
    head = table([row("tensorrt a", 9.0, 0.9, milliseconds_device=0.25), row("ort-cpu b", 3.0, 0.9)]).splitlines()
    assert "ms on the GPU alone" in head[0] and "0.25" in head[3] and "0.25" not in head[2]


def test_end_to_end_tells_its_parts() -> None:
    measurement = scenarios.end_to_end(bench(0.01), 1, 0.05)
    assert set(measurement.parts) == {"decode", "geometry", "inference"} and measurement.parts["inference"] >= 10
    assert min(measurement.samples) >= 10


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    ballast = b"x" * (300 << 20)
    code = "from runtime.benchmark.watch import peak_memory_mib; print(peak_memory_mib())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert 20 < float(done.stdout) < 250 and ballast


@pytest.mark.parametrize(("platform", "mib"), [("linux", 2048), ("darwin", 2)])
def test_without_proc_peak_memory_is_told_in_the_systems_own_unit(
    platform: str, mib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """getrusage(2) of Linux gives KiB, that of macOS bytes."""
    monkeypatch.setattr(watch, "Path", lambda _: SimpleNamespace(is_file=lambda: False))
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=2**21))
    monkeypatch.setattr(sys, "platform", platform)
    assert watch.peak_memory_mib() == mib


def test_gpu_memory_is_that_of_the_process_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [SimpleNamespace(pid=1, usedGpuMemory=9 << 20), SimpleNamespace(pid=os.getpid(), usedGpuMemory=300 << 20)]
    ours = Gpu("NVIDIA L4", "sm89", 23034, "GPU-4090")
    monkeypatch.setattr(watch, "driver", lambda: Driver("580.95.05", "13.0", (ours,)))
    nvml = SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID={"GPU-4090": 0}.get, NVMLError=RuntimeError)
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda device: held
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert watch.gpu_memory_mib() == 300
    held.pop()
    assert watch.gpu_memory_mib() is None
    head, _, line = table([row("tensorrt a", 9.0, 0.9, gpu_memory_mib=300.0, cold_start_seconds=2.5)]).splitlines()[:3]
    assert head.endswith("| GPU MiB | cold start s |") and line.endswith("| 300 | 2.50 |")


def test_what_held_the_gpu_back_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = [os.getpid(), os.getppid(), 1]
    nvml = SimpleNamespace(
        nvmlDeviceGetCurrentClocksEventReasons=lambda gpu: 1 | 4,  # 1: it idles
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 350_000,
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: [SimpleNamespace(pid=pid) for pid in pids],
    )
    monkeypatch.setattr(watch, "_of_gpu", lambda question: question(nvml, 0))
    limit, others = watch._held_back()
    assert limit == "the GPU was held back by its power limit of 350 W" and others == "2 other processes used the GPU"
    pids.append(2**22 + 1)  # the number that a process has on the container's host
    assert watch._held_back() == (limit,) and watch._other_processes() == "not known"


def test_a_gpu_that_is_held_back_all_the_time_is_steady_and_its_row_tells_it() -> None:
    limit, laptop = "the GPU was held back by its power limit of 60 W", {"gpu_power_limit_watts": 60.0}
    held = [Disturbance(1.0, gpu=(limit,), gpu_conditions=laptop | {"gpu_sm_mhz": mhz}) for mhz in (900, 950, 1900)]
    steady = rows._latency([scenarios.Measurement((10.0, 11.0), disturbance=each) for each in held], 1)
    assert not steady["unstable"] and steady["gpu_held_back"] == [limit] and steady["gpu_sm_mhz"] == 950
    kept = row("tensorrt a", 9.0, 0.9, **{name: value for name, value in steady.items() if name.startswith("gpu_")})
    assert "at 60 W" in table([kept]) and f"What held the GPU back: {limit}." in table([kept])
    old = row("tensorrt a", 9.0, 0.9)
    assert "power limit" not in table([old]) and "other power limit" in comparison([old], [kept])
    without = rows._latency([scenarios.Measurement((10.0, 11.0), disturbance=Disturbance(1.0))], 1)
    assert not [name for name in without if name.startswith("gpu_") and name != "gpu_memory_mib"]


def test_what_is_not_the_choice_is_not_measured_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = SimpleNamespace(candidate=SimpleNamespace(name="the next in line"))
    chosen = SimpleNamespace(choice=SimpleNamespace(name="the choice"))
    monkeypatch.setattr(speed, "load", lambda path: contextlib.nullcontext(opened))
    monkeypatch.setattr(speed.Deployment, "read", lambda path: chosen)
    with pytest.raises(SajiError, match="chooses the choice, but the next in line serves here"):
        speed.require_choice(Path("deployment.json"))
    opened.candidate.name = "the choice"
    speed.require_choice(Path("deployment.json"))


def test_in_the_server_scenario_waiting_counts() -> None:
    """A queue: at half the capacity answers come soon, above it they wait ever longer (the arrivals do not)."""
    relaxed, swamped = (scenarios.poisson(bench(0.01), rate, 60) for rate in (20, 300))
    assert np.median(relaxed) < 30 and swamped[-1] > 200 and swamped[-1] > 3 * swamped[5]


def test_a_rate_that_cannot_be_held_any_more_is_not_tried_to_its_end() -> None:
    latencies = scenarios.poisson(bench(0.01), 300, 500, bound=20)
    assert len(latencies) < 60 and np.quantile(latencies, 0.99) > 20
    slow = scenarios.highest_rate(lambda rate: pytest.fail("takes longer than anybody waits"), 50, 99, capacity=2)
    assert slow["rate"] == 0 and not slow["tried"]


def test_an_answer_that_comes_late_does_not_end_a_rate_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    late, slept = bench(0.001), list[float]()

    def at_once(answer: Callable[[float], None], due: float) -> SimpleNamespace:
        late.classifier.backend.seconds = 0.03 if len(slept) == 41 else 0.001  # type: ignore[attr-defined]
        answer(due)
        return SimpleNamespace(result=lambda: None)

    callers = contextlib.nullcontext(SimpleNamespace(submit=at_once))
    monkeypatch.setattr(scenarios, "time", SimpleNamespace(perf_counter=lambda: sum(slept), sleep=slept.append))
    monkeypatch.setattr(scenarios, "ThreadPoolExecutor", lambda streams: callers)
    latencies = scenarios.poisson(late, 10, 200, bound=20)
    assert len(latencies) == 200 and max(latencies) > 20


def test_the_rates_that_are_tried_begin_at_half_of_what_all_streams_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "timed", lambda call, seconds: [10.0])
    monkeypatch.setattr(scenarios, "poisson", lambda *_: [1.0])
    assert scenarios.server(bench(0, streams=4), 1, 0, latency_bound=50).figures["tried"][0]["rate"] == 200
    with pytest.raises(SajiError, match=r"--latency-bound is 0; it must be above 0"):
        scenarios.ServerFlags(latency_bound=0)


def test_the_highest_rate_is_found_by_halving() -> None:
    held = scenarios.highest_rate(lambda rate: [10.0 if rate <= 70 else 99.0], bound=50, percent=99, capacity=100)
    assert 65 <= held["rate"] <= 70 and len(held["tried"]) == 6
    assert scenarios.highest_rate(lambda rate: [99.0], 50, 99, 100)["rate"] == 0
    assert scenarios.highest_rate(lambda rate: [50.0], 50, 99, 100)["rate"] > 90  # at the bound it is held


def row(candidate: str, milliseconds: float, accuracy: float, **others: object) -> dict:
    samples = [[milliseconds * drift] * 3 for drift in DRIFT]
    figures = {"milliseconds": milliseconds, "p25": 1, "p75": 9, "p90": 7.0, "p95": 7.5, "p99": None}
    figures |= {"images_per_second": 1000 / milliseconds, "unstable": True, "causes": ["steal"], "parts": {}}
    machine = {"machine_cpu": "Test", "machine_cores": 2, "machine_cpu_features": ["avx2"], "machine_gpu": None}
    about = {"verdict": "pass", "file_bytes": 1e6, "photos": 99, "accuracy": accuracy, "sha256": "0", "versions": {}}
    kind = {"candidate": candidate, "backend": candidate.split()[0], "scenario": "single-stream", "timed": "it"}
    made = {"commit": "c", "dirty": False, "time": "2026-01-01", "drawn": True, "image_size": 8, "rounds": 8}
    interval = {"accuracy_interval": [accuracy - 0.02, accuracy + 0.02], "samples": samples, "batch": 1}
    return {**figures, **machine, **about, **kind, **made, **interval, **others}


@dataclass(frozen=True)
class CountFlags:
    most: int = 3
    """what is counted to"""


def test_a_scenario_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flags, the figures of its row and its table follow from the entry."""
    entry = scenarios.Scenario(
        "counting",
        lambda bench, batch, seconds, most: scenarios.Measurement(figures={"counted": most}),
        flags=CountFlags(),
        alone=True,
        columns=lambda rows: [("counted", lambda row: f"to {row['counted']}")],
        slowness=lambda row: row["counted"],
    )
    monkeypatch.setitem(scenarios.SCENARIOS, "count", entry)
    parser = Parser()
    command._add_flags(parser)
    options = from_flags(Options(), parser.parse_args(["--scenario", "count", "--most", "5"]))
    assert options.scenario == ("count",) and "--most" in parser.format_help()
    engine = SimpleNamespace(backend=SimpleNamespace(otherwise=""))
    it = SimpleNamespace(bench=bench(0), load_seconds=1.0, classifier=engine)
    measurement = worker.Worker.measure(it, "count", 1, 0, {"most": 5})
    assert measurement.figures == {"counted": 5} and measurement.load_seconds == 1.0 and measurement.disturbance
    head, _, first = table([row("a", 1.0, 0.9, scenario="count", **measurement.figures)]).splitlines()[:3]
    assert head.startswith("| candidate | counted | accuracy") and first.startswith("| a | to 5 |")
    engine.backend.otherwise = "runs without the CUDA graph that it was asked for"
    with pytest.raises(NotAsAsked, match="runs without the CUDA graph"):  # a figure under a name it does not deserve
        worker.Worker.measure(it, "count", 1, 0, {"most": 5})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("drift", "refused"), [(1 + 1e-4, False), (1 + 4e-4, True), (np.nan, True)])
def test_batches_are_not_timed_where_they_are_answered_otherwise(drift: float, refused: bool) -> None:
    it = SimpleNamespace(bench=bench(0))
    it.classifier = it.bench.classifier
    it.classifier.backend.run = lambda images: np.array([[1, -1]] * len(images)) * (drift if len(images) > 1 else 1)
    with pytest.raises(SajiError, match=r"batches of 2|NaN") if refused else contextlib.nullcontext():
        worker.Worker._require_same_answers(it, 2)


class Raced:
    """A contestant whose measurements take on a clock as long as they are asked to."""

    def __init__(self, name: str, log: list[tuple[str, int, float]]) -> None:
        self.name, self.log = name, log
        self.measurements: dict[tuple[str, int], list[str]] = defaultdict(list)

    def start(self) -> None: ...

    def measure(self, scenario: str, batch: int, seconds: float) -> str:
        self.log.append((self.name, batch, seconds))
        return self.name


@pytest.mark.parametrize(("seconds", "each", "rounds"), [(0.5, 0.025, 5), (12, 0.3, 10)])
def test_in_each_round_each_is_measured_once_in_an_order_by_chance(
    seconds: float, each: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raced(seed: int) -> list[list[tuple[str, int]]]:
        log: list[tuple[str, int, float]] = []
        clock = SimpleNamespace(perf_counter=lambda: round(sum(took for *_, took in log), 6))
        monkeypatch.setattr(contestant, "time", clock)
        contestants = [Raced(name, log) for name in "ab"]
        loads = [("single-stream", 1), ("single-stream", 8)]
        assert contestant.run_rounds(contestants, loads, seconds, seed, print) == contestants
        assert {took for *_, took in log} == {0, each}  # the warm-up's
        timed = [(name, batch) for name, batch, took in log if took]
        return [timed[i : i + 4] for i in range(0, len(timed), 4)]

    orders = raced(0)
    assert len(orders) == rounds and all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(orders[0])) == 4 and len({tuple(order) for order in orders}) > 1
    assert raced(0) == orders != raced(1)


def test_the_table_gives_ratios_with_intervals_and_only_supported_tails() -> None:
    text = table([row("pytorch a", 9.0, 0.9), row("openvino b", 3.0, 0.9)])
    first, second = text.splitlines()[2:4]
    assert first.startswith("| openvino b") and "3.00× (3.00–3.00)" in first and "p95 7.50" in first
    assert "slower, 3.00×" in second and "p99" not in text and "openvino b: steal" in text


def test_comparing_two_files_says_what_differs_besides() -> None:
    before, after = row("a", 4.0, 0.9), row("a", 2.0, 0.9, sha256="1", versions={"torch": "3"})
    lines = comparison([before, row("gone", 1.0, 0.9)], [after, row("new", 1.0, 0.9)]).splitlines()
    assert len(lines) == 3 and "faster, 2.00×" in lines[2] and "other file, other versions" in lines[2]
    assert "tie" in comparison([before], [before]) or "inconclusive" in comparison([before], [before])


def test_the_frontier_holds_whom_nobody_beats_in_both(tmp_path: Path) -> None:
    beaten = ("as fast as b", 2, 0.85), ("c", 3, 0.85), ("as accurate as d", 5, 0.95)
    rows = [row(*place) for place in (("a", 1, 0.8), ("b", 2, 0.9), ("d", 4, 0.95), *beaten)]
    assert [r["candidate"] for r in frontier(rows)] == ["a", "b", "d"]
    draw(rows, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert all(f">{name}<" in text for name in "abd")


def test_claims_refuse_nonsense_in_one_sentence(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "lab", "speed", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr

    assert "holds no benchmark of resnet34; run one with: make train export bench" in said("--out", str(tmp_path))
    assert "invalid choice: 'magic'" in said("--only", "magic")
    with pytest.raises(SajiError, match="--rounds 0 would count no pair"):
        compare(Claim("nothing", 1, [], []), 0)


def test_two_functions_are_compared_each_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    peak = in_process(workloads.latency_median, "Latency: median = 2.5 ms")
    done = subprocess.run([sys.executable, *peak], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == 2.5
    ours, theirs = (["-c", f"print('noise'); print('{{\"per_second\": {rate}}}')"] for rate in (9, 3))
    row = compare(Claim("nine against three", 2, ours, theirs), 1)
    assert row["ratio"] == 3 and row["ours"] == [9] and row["theirs"] == [3] and row["claim"] == "nine against three"
    assert compare(Claim("less", 2, ours, theirs, less_is_better=True), 1)["ratio"] == pytest.approx(1 / 3, abs=1e-3)
    with pytest.raises(SajiError, match="failed with status 3: no message"):
        compare(Claim("broken", 1, ["-c", "exit(3)"], theirs), 1)


def test_an_idea_that_is_kept_is_measured_with_it_and_without_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "SECONDS", 0.05)
    photo = speed.write_photo(model, tmp_path / "1.jpg", 256, 64, 0)
    place = str(model), "resnet18 · ort-cpu · fp32"
    for way in (True, False):
        assert workloads.photo(*place, str(photo), way)["per_second"] > 0
        assert workloads.resizing(str(model), str(photo), way)["per_second"] > 0
        assert workloads.photos_of_folder(*place, str(tmp_path), way)["per_second"] > 0


def test_trtexecs_latency_is_read_from_what_it_prints() -> None:
    text = (
        "[I] Latency: min = 0.9 ms, max = 1.8 ms, mean = 1.1 ms, median = 1.05 ms, percentile(90%) = 1.2 ms\n"
        "[I] GPU Compute Time: min = 0.5 ms, max = 1 ms, mean = 0.6 ms, median = 0.55 ms, percentile(90%) = 0.7 ms\n"
    )
    assert workloads.latency_median(text) == 1.05
    with pytest.raises(SajiError, match="no median latency"):
        workloads.latency_median("&&&& FAILED TensorRT.trtexec")


def bench_py(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "runtime" / "bench.py"), *arguments], capture_output=True, text=True
    )


def test_what_lies_beside_bench_py_is_not_taken_for_a_library(tmp_path: Path) -> None:
    shutil.copy(ROOT / "runtime" / "bench.py", tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('this is no numpy')")
    line = [sys.executable, str(tmp_path / "bench.py"), "--compare", "gone.jsonl", "gone.jsonl"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert "gone.jsonl does not exist" in done.stderr
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import atexit, sys\natexit.register(lambda: print(sys.path))")
    line[1], environ = str(ROOT / "runtime" / "bench.py"), {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(line, capture_output=True, text=True, env=environ)
    assert repr(str(ROOT / "runtime")) not in done.stdout and repr(str(ROOT)) in done.stdout


def test_bench_compares_files_and_measures_nothing(tmp_path: Path) -> None:
    for name, milliseconds in (("before", 4.0), ("after", 2.0)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row("a", milliseconds, 0.9)) + "\n")
    done = bench_py("--compare", str(tmp_path / "before.jsonl"), str(tmp_path / "after.jsonl"))
    assert done.returncode == 0 and "faster, 2.00×" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["compared"] == 1


@pytest.mark.parametrize(
    "damage", ['{"scenario', "\xff", "[1]", "7", '{"samples": [[1]]}', '{"samples": [[1]], "a": 1}']
)
def test_rows_that_are_damaged_are_refused_in_one_sentence(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(row("a", 1.0, 0.9)).encode() + b"\n" + damage.encode("latin-1") + b"\n")
    with pytest.raises(SajiError, match=r"rows\.jsonl") as refusal:
        command.side_by_side(file, file)
    assert "\n" not in str(refusal.value)


def test_a_damaged_row_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n\n[1]\n{}\n")
    with pytest.raises(SajiError, match="line 3, is no row"):
        rows.read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "gone.jsonl", "gone.jsonl"], "gone.jsonl does not exist"),
        (["--percentile", "100"], "percentile is 100.0; it must be"),
        (["--scenario", "server", "--batch", "8"], "add 1 to --batch"),
        (["--photo", "gone.jpg"], "gone.jpg cannot be opened"),
    ],
)
def test_bench_refuses_nonsense_in_one_sentence(arguments: list[str], words: str) -> None:
    done = bench_py(*arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
