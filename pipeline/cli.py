"""The command line: `python run_pipeline.py run | listen | control | replay | build-engine | doctor | …`.

Each error that the program expects is one sentence on standard error. Exit statuses:

    0          everything was done; also when a signal ended live sources
    1          something was lost, the rest is kept
    2          nothing was done
    130, 143   SIGINT or SIGTERM ended a file early; what was done is kept
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, NoReturn, Self

import typer
from rich.console import Console

from pipeline import standard_output
from pipeline.errors import ERRORS, ConfigError
from pipeline.fleet import commands as fleet
from pipeline.options import (
    DEFAULT_PROMPT,
    Backend,
    Keypoints,
    Model,
    Overrides,
    Preset,
    PromptAnnotation,
    PromptFrom,
    PromptImage,
    RunPrompt,
    Weights,
    parse_prompts,
)
from pipeline.service import commands as service
from pipeline.service import control_commands as steering

if TYPE_CHECKING:
    from engines.prompts import PromptClass
    from pipeline.config import PipelineConfig
    from pipeline.flow.pipeline import PipelineResult
    from pipeline.sources import Source

_log = logging.getLogger(__name__)

_CHECKOUT_COMMAND = "python run_pipeline.py"
_INSTALLED_COMMAND = "xpose-stream"
_LOST = 1
_NOTHING_DONE = 2
_REFRESH_S = 0.1
_SECOND_SIGNAL_S = 1.0

app = typer.Typer(
    help="X-Pose on live video: every prompted keypoint of every prompted object, tracked and published.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, by default the process's own, and exit with its status."""
    standard_output.prepare()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s: %(message)s")
    try:
        app(None if arguments is None else list(arguments), prog_name=_command())
    except ERRORS as error:
        _print_error(str(error))
        sys.exit(_NOTHING_DONE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def _command() -> str:
    """Return the command to show in hints: that of the installed program, or that of a checkout."""
    name = Path(sys.argv[0]).name
    return name if name == _INSTALLED_COMMAND else _CHECKOUT_COMMAND


@app.command()
def run(
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="File, recording (.mcap), folder of images, /dev/videoN, rtsp://…, http://… or testsrc://…; may be "
            "given several times."
        ),
    ] = None,
    prompt: RunPrompt = None,
    keypoints: Keypoints = None,
    prompt_image: PromptImage = None,
    prompt_annotation: PromptAnnotation = None,
    prompt_from: PromptFrom = "example",
    model: Model = None,
    weights: Weights = None,
    backend: Backend = None,
    config: Preset = None,
    set_: Overrides = None,
    poses: Annotated[Path | None, typer.Option(help="Write the messages as JSON lines.")] = None,
    video: Annotated[Path | None, typer.Option(help="Write an annotated video (.mp4, .mkv, .mov).")] = None,
    record: Annotated[Path | None, typer.Option(help="Record packets and messages (.mcap).")] = None,
    publish: Annotated[str | None, typer.Option(help="Publish on tcp://ADDRESS:PORT or ipc://FILE.")] = None,
    control: Annotated[
        str | None, typer.Option(help="Take commands on ipc://FILE or tcp://ADDRESS:PORT; see the command control.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Key folder: only its clients may connect; see the command keys.")
    ] = None,
    monitor: Annotated[
        str | None, typer.Option(help="Show the pipeline in a browser: HOST:PORT, such as 127.0.0.1:8080.")
    ] = None,
    monitor_token_file: Annotated[
        Path | None, typer.Option(help="File with the token for viewers; needed if other machines reach the monitor.")
    ] = None,
    all_frames: Annotated[
        bool, typer.Option("--all-frames", help="Also infer the frames of a recording that were dropped at the time.")
    ] = False,
    require_sources: Annotated[
        bool,
        typer.Option("--require-sources", help="A camera that is absent at the start is an error."),
    ] = False,
) -> None:
    """Find, track and publish keypoints in one or more sources.

    Exit status: 0 done; 1 something was lost, the rest is kept; 2 nothing was done; 130 or 143 a signal ended a file
    early.
    """
    from pipeline.config import load_config

    flags = {
        "--model": ("engine.model", model),
        "--weights": ("engine.weights", weights),
        "--backend": ("engine.backend", backend),
        "--publish": ("publish.endpoint", publish),
        "--control": ("control.endpoint", control),
        "--keys": ("keys.folder", None if keys is None else str(keys)),
        "--monitor": ("monitor.address", monitor),
        "--monitor-token-file": ("monitor.token_file", None if monitor_token_file is None else str(monitor_token_file)),
        "--require-sources": ("source.required", True if require_sources else None),
        "--all-frames": ("source.all_frames", True if all_frames else None),
        "--prompt": ("source.recorded_prompts", None if prompt is None else False),
    }
    addresses = source or []
    settings = load_config(config, set_ or (), flags, batch=max(1, len(addresses)))
    if not addresses and not settings.is_steered:
        raise ConfigError("run: there is no source; give --source, or --control or --monitor to add some while it runs")
    words = prompt or DEFAULT_PROMPT
    prompts = parse_prompts(settings.engine, words, keypoints, prompt_image, prompt_annotation, prompt_from)
    sources = _open_sources(settings, addresses)
    settings = load_config(config, set_ or (), flags, batch=max(1, len(sources)))
    sys.exit(_run(settings, sources, prompts, poses, video, record))


@app.command()
def listen(
    endpoint: Annotated[str, typer.Argument(help="The publisher's address, such as tcp://127.0.0.1:5555.")],
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    newest: Annotated[bool, typer.Option("--newest", help="Skip older messages and show the newest.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print whole messages as JSON lines.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after this many messages.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Key file of this client, if the publisher uses keys.")] = None,
) -> None:
    """Print the messages of a publisher, one line each, with their age and the number of missed messages."""
    from xpose_client.messages import to_json_line
    from xpose_client.subscriber import PoseSubscriber

    with PoseSubscriber(endpoint, source=source, conflate=newest, keys=keys) as subscriber:
        for received in subscriber:
            message = received.message
            if json:
                line: str | bytes = to_json_line(message)
            else:
                what = ", ".join(f"{track.class_name} {track.id}" for track in message.tracks) or "nothing"
                line = (
                    f"{message.source} frame {message.frame}: {what} (age {received.age_s * 1000:.1f} ms, "
                    f"missed {subscriber.missed})\n"
                )
            failure = standard_output.write(line)
            if isinstance(failure, BrokenPipeError):
                return  # the reader, such as `head`, has ended
            if failure is not None:
                _print_error(f"standard output: cannot be written ({failure.strerror}); later messages are lost")
                sys.exit(_LOST)
            if count is not None and subscriber.received >= count:
                return


@app.command()
def fetch_weights(
    what: Annotated[str, typer.Argument(help="xpose, clip or all.")] = "all",
    folder: Annotated[
        Path | None, typer.Option(help="Target folder; by default the folder that the engine reads.")
    ] = None,
) -> None:
    """Show the licence of the official weights, then download them from their authors."""
    from engines import fetch
    from pipeline.display import DownloadDisplay

    with DownloadDisplay(Console(stderr=True)) as display:
        for path in fetch.fetch_weights(what, folder, display.update):
            standard_output.write(f"{path}\n")


@app.command()
def build_engine(
    model: Annotated[str, typer.Option(help="nano, swin-t or swin-l.")] = "nano",
    weights: Annotated[str, typer.Option(help="Weights file; by default the model's own.")] = "",
    backend: Annotated[str, typer.Option(help="tensorrt, openvino, or auto: TensorRT if there is a GPU.")] = "auto",
    size: Annotated[str | None, typer.Option(help="Input size as HEIGHTxWIDTH; by default the model's own.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per inference; on a CPU always one.")] = 1,
    classes: Annotated[int, typer.Option(min=1, help="Capacity for classes, rounded up to 1, 2, 4, 8 and so on.")] = 8,
    keypoints: Annotated[
        int, typer.Option(min=1, help="Capacity for keypoints of a class, rounded up to 17, 33 or 68.")
    ] = 68,
    precision: Annotated[
        str, typer.Option(help="auto (bf16 if OpenVINO is fast with it on this processor), fp32, bf16, fp16.")
    ] = "auto",
) -> None:
    """Compile an engine for this machine, compare it with PyTorch in pixels, and keep it in the cache."""
    from engines.engine import build
    from engines.preprocess import parse_size
    from pipeline.config import load_config

    flags = {
        "--model": ("engine.model", model),
        "--weights": ("engine.weights", weights),
        "--backend": ("engine.backend", backend),
        "--size": ("engine.size", None if size is None else parse_size(size)),
        "--batch": ("engine.batch", batch),
        "--classes": ("engine.max_classes", classes),
        "--keypoints": ("engine.max_keypoints", keypoints),
        "--precision": ("engine.precision", precision),
    }
    console = Console(stderr=True)
    with console.status("loading the weights") as status:
        built = build(load_config(flags=flags).engine, lambda step: status.update(step))
    console.print(built.describe(), soft_wrap=True, highlight=False)
    for name, value in built.manifest.items():
        if isinstance(value, int | float | str):
            console.print(f"{name}: {value}", soft_wrap=True, highlight=False)
    standard_output.write(f"{built.path}\n")


app.command()(fleet.batch)
app.add_typer(fleet.fleet, name="fleet")
app.command()(service.replay)
app.command()(service.recover)
app.command()(steering.keys)
app.add_typer(steering.control, name="control")


@app.command()
def convert(
    poses: Annotated[Path, typer.Argument(help="A file that --poses wrote.")],
    to: Annotated[str, typer.Option(help="csv, parquet, coco, sleap or dlc (DeepLabCut).")] = "csv",
    out: Annotated[Path | None, typer.Option(help="File to write; by default beside the poses.")] = None,
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="Only this class.")] = None,
) -> None:
    """Turn pose lines into a table, or into a file of SLEAP, DeepLabCut or COCO tools."""
    from pipeline.outputs.convert import FORMATS, PoseLines
    from pipeline.outputs.convert import convert as write

    path = out or poses.with_suffix(FORMATS[to][0] if to in FORMATS else f".{to}")
    write(PoseLines(poses, source, class_name), to, path)
    standard_output.write(f"{path}\n")


@app.command()
def export_onnx(
    out: Annotated[Path, typer.Option(help="ONNX file to write; a description (.json) is written beside it.")],
    model: Annotated[str, typer.Option(help="nano, swin-t or swin-l.")] = "nano",
    weights: Annotated[str, typer.Option(help="Weights file; by default the model's own.")] = "",
    size: Annotated[str | None, typer.Option(help="Input size as HEIGHTxWIDTH; by default the model's own.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per run.")] = 1,
    prompt: Annotated[str | None, typer.Option(help="Also encode this prompt and write it beside the file.")] = None,
    keypoints: Annotated[
        str | None, typer.Option(help="Keypoint names for classes without @list: 'rim,handle'.")
    ] = None,
) -> None:
    """Write the network as standard ONNX for other runtimes; prompts are inputs."""
    from engines.config import EngineConfig
    from engines.engine import export_onnx as export
    from engines.preprocess import parse_size
    from engines.prompts import parse_prompt

    config = EngineConfig(model=model, weights=weights, size=None if size is None else parse_size(size), batch=batch)
    if prompt is None and keypoints is not None:
        raise ConfigError("--keypoints needs a --prompt: give one, or leave both out")
    classes = (
        ()
        if prompt is None
        else parse_prompt(prompt, keypoints, max_classes=config.max_classes, max_keypoints=config.max_keypoints)
    )
    with Console(stderr=True).status("exporting"):
        written = export(config, out, classes)
    for path in written:
        standard_output.write(f"{path}\n")


@app.command()
def doctor() -> None:
    """Report what this machine has, and what this means for the pipeline."""
    from pipeline.doctor import print_report

    standard_output.show(print_report)


def _open_sources(settings: PipelineConfig, addresses: Sequence[str]) -> list[Source]:
    """Return the sources of all addresses; warn if the settings differ from those of a recording."""
    from pipeline.flow.recording import differences
    from pipeline.sources import RecordingSource, open_sources

    sources = [source for address in addresses for source in open_sources(address, settings.source)]
    recordings = {source.recording.path: source.recording for source in sources if isinstance(source, RecordingSource)}
    for path, recording in recordings.items():
        if changed := differences(recording.metadata, settings):
            _log.warning("%s: was recorded with %s, so the tracks may differ from the recorded ones", path, changed)
        if not settings.source.recorded_prompts:
            _log.warning("%s: --prompt replaces the recorded prompts", path)
    return sources


def _run(
    settings: PipelineConfig,
    sources: Sequence[Source],
    prompts: tuple[PromptClass, ...],
    poses: Path | None,
    video: Path | None,
    record: Path | None,
) -> int:
    """Run a pipeline to its end and show its progress; return the exit status."""
    from engines.engine import Engine
    from pipeline.display import RunDisplay, print_closing
    from pipeline.flow.pipeline import Pipeline
    from pipeline.flow.threads import spare_loaded_objects
    from pipeline.service.services import Services

    only_files = bool(sources) and not any(source.live for source in sources)
    hold = settings.is_steered and not only_files
    pipeline = Pipeline(settings, poses=poses, video=video, record=record, hold=hold)
    for source in sources:
        pipeline.add(source)
    with Services(pipeline) as services, closing(Engine(settings.engine_of_pipeline)) as engine, _Signals() as signals:
        start_s = time.monotonic()
        with RunDisplay(pipeline, Console(stderr=True)) as display:
            spare_loaded_objects()
            pipeline.start(engine, prompts)
            services.start(engine)
            while not pipeline.wait(_REFRESH_S):
                display.update()
                services.update()
                if signals.first is not None:
                    pipeline.stop()
            display.update()
        try:
            result = pipeline.finish()
        except ERRORS as error:
            _print_error(str(error))
            return _LOST if pipeline.metrics.frames_out("publish") else _NOTHING_DONE
        duration_s = time.monotonic() - start_s
        standard_output.show(lambda console: print_closing(pipeline, result, duration_s, console))
        for sentence in result.broken:
            _print_error(sentence)
        status = _exit_status(result, signals.first, only_live=all(source.live for source in pipeline.sources))
        if signals.first is not None:
            _leave(status)
    return status


def _print_error(sentence: str) -> None:
    with suppress(OSError):  # nobody can read it
        print(f"error: {sentence}".replace(_CHECKOUT_COMMAND, _command()), file=sys.stderr)


def _exit_status(result: PipelineResult, signal_number: int | None, *, only_live: bool) -> int:
    if result.broken:
        return _LOST if result.published else _NOTHING_DONE
    return 0 if signal_number is None or only_live else 128 + signal_number


def _leave(status: int) -> NoReturn:
    """End the process at once: after a signal, do not wait for PyTorch's tear-down, which takes a second or more."""
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


class _Signals:
    """Records the first SIGINT or SIGTERM. The loop that waits for the pipeline checks `first` and stops the pipeline.

    A handler may interrupt code that holds a lock, so it takes no lock. A second signal within a second is ignored:
    `timeout` and container runtimes send two at once. A later one ends the process; the files written so far stay.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self._first_s = 0.0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.first is None:
            self._first_s = time.monotonic()
            self.first = number
        elif time.monotonic() - self._first_s >= _SECOND_SIGNAL_S:
            os._exit(128 + number)
