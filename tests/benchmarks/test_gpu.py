"""The GPU benchmark without a GPU: its steps on a fake device, its processes, and what it may import."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import _gpu_steps as steps
from benchmarks import gpu
from engines.backends import Backend
from engines.backends.eager import EagerBackend
from engines.kernels import cuda, letterbox
from engines.xpose import XPose, XPoseConfig
from tests.engines.kernels.host import run_on_host

SMALL = steps.Sizes(
    input_hw=(64, 96),
    levels=((8, 12), (4, 6), (2, 3)),
    heads=4,
    decoder_queries=9,
    keypoints=3,
    batches=(1, 2),
    copy_bytes=64,
    repeats=4,
    calls_per_graph=2,
    networks=(("nano", XPoseConfig.nano()),),
    blocks_per_processor=(3, 4),
    picture_hw=(30, 40),
    slot_frames=8,
)
ABSENT_THERE = (
    "msgspec",
    "zmq",
    "av",
    "typer",
    "rich",
    "filterpy",
    "lap",
    "instant_clip_tokenizer",
    "ftfy",
    "openvino",
)
"""Packages that a machine with a GPU need not have."""


class FakeDevice:
    """The CPU in a GPU's place: every run counts and takes half a millisecond."""

    torch_device = torch.device("cpu")

    def __init__(self) -> None:
        self.runs = 0

    def about(self) -> dict[str, object]:
        return {"gpu": "fake", "l2_bytes": 256}

    def time_ms(self, run: Callable[[], object], repeats: int) -> list[float]:
        self.runs += 1
        run()
        return [0.5] * repeats

    def captured(self, run: Callable[[], object], calls: int = 1) -> Callable[[], object]:
        return run

    def synchronize(self) -> None:
        pass

    def slots_backend(self, model: XPose, input_hw: tuple[int, int], precision: str) -> Backend:
        return EagerBackend(model, input_hw, 1, precision, self.torch_device)


@pytest.fixture(autouse=True)
def _fake_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def run(launch: cuda.Launch, *tensors: Tensor) -> None:
        tensors[-1].copy_(run_on_host(launch, *tensors[:-1]))

    monkeypatch.setattr(cuda, "run", run)
    monkeypatch.setattr(letterbox, "letterbox_into", lambda out, source, nv12=None: out.zero_())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("step", "cases"),
    [
        ("launch", 1),
        ("accuracy", 2 * 3),
        ("kernel", 1 + 3 * (3 + 2) + 2),
        ("network", 2 * 2),
        ("slots", 1),
    ],
)
def test_every_step_runs_on_a_fake_device_and_names_its_rows(step: str, cases: int) -> None:
    rows = list(gpu.MEASURED[step](FakeDevice(), SMALL))
    assert len({row["case"] for row in rows}) == len(rows) == cases
    json.dumps(rows)


def test_the_accuracy_step_passes_right_kernels_and_fails_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row["passed"] for row in steps.accuracy_step(FakeDevice(), SMALL))
    right = steps.ms_deform_attn
    monkeypatch.setattr(steps, "ms_deform_attn", lambda *inputs: right(*inputs) * 1.01)
    assert not any(row["passed"] for row in steps.accuracy_step(FakeDevice(), SMALL))


def test_a_row_is_known_before_the_next_one_is_measured() -> None:
    device = FakeDevice()
    rows = steps.kernel_step(device, SMALL)
    next(rows)
    after_copies = device.runs
    next(rows)
    assert device.runs == after_copies + 1


def test_bytes_and_bounds_of_the_kernel_are_counted() -> None:
    """Encoder of 126 queries: 4 heads, 12 samples, 4 corners, 32 channels of 2 bytes."""
    rows = {str(row["case"]): row for row in steps.kernel_step(FakeDevice(), SMALL)}
    row = rows["kernel, encoder, batch 1, float16"]
    assert row["gathered_bytes"] == 126 * 4 * 12 * 4 * 32 * 2
    value, reference, offsets, logits, out = (
        126 * 128 * 2,
        126 * 3 * 2 * 4,
        126 * 4 * 12 * 2 * 4,
        126 * 4 * 12 * 4,
        126 * 128 * 2,
    )
    assert row["moved_bytes"] == value + reference + offsets + logits + out
    copied_gb_s = 2 * 64 * 2 / 0.5 / 1e6
    assert row["cache_bound_ms"] == pytest.approx(row["gathered_bytes"] / copied_gb_s / 1e6, rel=1e-3)


def _rows_of(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(path.read_text())["rows"]
    return rows


def test_each_row_is_in_the_file_as_soon_as_the_step_prints_it(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path)
    watcher = f"import json; print(len(json.load(open({str(report.path)!r}))['rows']), flush=True)"
    script = "import time\nfor i in range(2):\n print('ROW {\"case\": %d}' % i, flush=True); time.sleep(1)\n" + watcher
    gpu.run_step("network", [sys.executable, "-c", f"{script}; raise SystemExit(1)"], 30, report)
    *rows, about = _rows_of(report.path)
    assert rows == [{"case": 0}, {"case": 1}]
    assert about["output"] == ["2"], "both rows were in the file before the step ended"


@pytest.mark.parametrize("ending", ["raise ValueError('it broke')", "import os; os.kill(os.getpid(), 9)"])
def test_a_step_that_fails_leaves_its_rows_and_one_that_says_so(ending: str, tmp_path: Path) -> None:
    report = gpu.Report(tmp_path)
    gpu.run_step("kernel", [sys.executable, "-c", f"print('ROW {{}}', flush=True)\n{ending}"], 30, report)
    first, about = _rows_of(report.path)
    assert first == {}
    assert (about["step"], about["passed"]) == ("kernel", False)
    assert ("it broke" in str(about["output"])) == ("broke" in ending)


def test_a_step_that_hangs_is_stopped_and_the_row_says_so(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path)
    gpu.run_step("kernel", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5, report)
    (about,) = _rows_of(report.path)
    assert (about["passed"], about["stopped_after_s"]) == (False, 0.5)


def test_steps_run_in_the_order_of_the_issue_and_none_begins_without_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[str] = []
    monkeypatch.setattr(gpu, "run_step", lambda name, command, limit_s, report: run.append(name))
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
    gpu.run_all(gpu.Report(tmp_path / "all"))
    assert run == ["tests", "sanitizer", "accuracy", "kernel", "network", "slots"]
    report = gpu.Report(tmp_path / "none")
    gpu.run_all(report, total_s=0)
    assert [row["skipped"] for row in report.rows] == ["no time left"] * 6
    assert gpu.TOTAL_S < 480


def test_a_missing_sanitizer_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run_step", lambda *step: None)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    report = gpu.Report(tmp_path)
    gpu.run_all(report)
    assert report.rows == [{"step": "sanitizer", "skipped": "compute-sanitizer is not installed"}]


@pytest.fixture
def bare_environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the service's packages cannot be imported."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in ABSENT_THERE:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is absent on this machine')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}:{gpu.REPOSITORY}", "OMP_NUM_THREADS": "1"}


def test_the_command_runs_without_the_services_packages_and_says_that_there_is_no_gpu(
    bare_environment: dict[str, str], tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: the command would measure it")
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    done = subprocess.run(
        command, env=bare_environment, cwd=gpu.REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "no CUDA device" in done.stdout
    assert _rows_of(tmp_path / "gpu.json") == []


def test_the_gpu_tests_are_collected_without_the_services_packages(
    bare_environment: dict[str, str], tmp_path: Path
) -> None:
    command = gpu.command_of("tests", tmp_path)
    assert command is not None
    done = subprocess.run(
        [*command, "--collect-only"],
        env=bare_environment,
        cwd=gpu.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for name in ("test_gpu_agrees_with_the_float64_reference", "test_gpu_gives_the_cpu_letterbox"):
        assert name in done.stdout


@pytest.mark.parametrize("step", ["launch", "network"])
def test_a_step_reaches_its_first_cuda_call_and_no_import_error(step: str, bare_environment: dict[str, str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "benchmarks.gpu", "--step", step]
    done = subprocess.run(
        command, env=bare_environment, cwd=gpu.REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "current_device" in done.stderr
    assert "CUDA" in done.stderr.splitlines()[-1]
