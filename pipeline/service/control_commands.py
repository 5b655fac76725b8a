"""The commands `control` and `keys`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import standard_output
from pipeline.errors import ConfigError, OutputError
from pipeline.options import Keypoints, PromptAnnotation, PromptFrom, PromptImage, pairs_of

if TYPE_CHECKING:
    from rich.console import Console

    from xpose_client.control import Control
    from xpose_client.control_messages import ExampleImage, PromptState, StatusAnswer, Thresholds

Keys = Annotated[Path | None, typer.Option(help="Key file of this client, if the pipeline uses keys.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.01, help="Longest wait for the answer, in seconds.")]
Json = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")]
_TIMEOUT_S = 10.0

control = typer.Typer(
    help="Steer a pipeline that runs with --control: control ENDPOINT status, prompt, add, remove, record, …",
    no_args_is_help=True,
)


@control.callback()
def endpoint_of(
    context: typer.Context,
    endpoint: Annotated[str, typer.Argument(help="The address that was given to run --control.")],
) -> None:
    """Steer a pipeline that runs with --control."""
    context.obj = endpoint


def _open(context: typer.Context, keys: Path | None, timeout_s: float) -> Control:
    from xpose_client.control import Control

    return Control(context.obj, keys=keys, timeout_s=timeout_s)


@control.command()
def status(context: typer.Context, keys: Keys = None, timeout: Timeout = _TIMEOUT_S, json: Json = False) -> None:
    """Show sources, prompts, engine and ages."""
    with _open(context, keys, timeout) as client:
        answer = client.status()
    if json:
        _print_json(answer)
    else:
        standard_output.show(lambda console: _print_status(answer, console))


@control.command()
def prompt(
    context: typer.Context,
    words: Annotated[str, typer.Argument(metavar="PROMPT", help="What to look for: person,dog or name@list.")],
    keypoints: Keypoints = None,
    prompt_image: PromptImage = None,
    prompt_annotation: PromptAnnotation = None,
    prompt_from: PromptFrom = "example",
    keys: Keys = None,
    timeout: Timeout = _TIMEOUT_S,
    json: Json = False,
) -> None:
    """Look for something else in all sources, from the next frame on."""
    examples = [_example(image, annotation) for image, annotation in pairs_of(prompt_image, prompt_annotation)]
    with _open(context, keys, timeout) as client:
        answer = client.set_prompts(
            words, keypoints, prompt_from=prompt_from, examples=examples, lists=_lists_in(words)
        )
    if json:
        _print_json(answer)
    else:
        standard_output.write(f"{_prompt_line(answer.prompts)}; from {_frames_line(answer.after_frames)}\n")


@control.command()
def add(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="rtsp://…, http://…, /dev/videoN and so on.")],
    name: Annotated[str, typer.Option(help="Name in topics; by default taken from the address.")] = "",
    keys: Keys = None,
    timeout: Timeout = _TIMEOUT_S,
    json: Json = False,
) -> None:
    """Add a source."""
    with _open(context, keys, timeout) as client:
        answer = client.add_source(address, name)
    if json:
        _print_json(answer)
    else:
        taken = name not in ("", answer.source)
        added = f"as {answer.source}: {name} is taken; from" if taken else f"{answer.source} at"
        standard_output.write(f"added {added} {_clock(answer.from_unix_ns)}\n")


@control.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the source, as in its topics.")],
    keys: Keys = None,
    timeout: Timeout = _TIMEOUT_S,
    json: Json = False,
) -> None:
    """Remove a source: its tracks and topics end."""
    with _open(context, keys, timeout) as client:
        answer = client.remove_source(name)
    if json:
        _print_json(answer)
    else:
        standard_output.write(f"removed {answer.source} at {_clock(answer.from_unix_ns)}\n")


@control.command()
def thresholds(
    context: typer.Context,
    score: Annotated[float | None, typer.Option(help="Keep detections above this score.")] = None,
    doubtful: Annotated[float | None, typer.Option(help="In videos, continue tracks above this score.")] = None,
    nms_iou: Annotated[float | None, typer.Option(help="Drop duplicates that overlap by more than this IoU.")] = None,
    keys: Keys = None,
    timeout: Timeout = _TIMEOUT_S,
    json: Json = False,
) -> None:
    """Change which detections count. A threshold that is not given stays as it is."""
    if score is doubtful is nms_iou is None:
        raise ConfigError("thresholds: nothing to change; give --score, --doubtful or --nms-iou")
    with _open(context, keys, timeout) as client:
        before = client.status().thresholds
        answer = client.set_thresholds(score, doubtful, nms_iou)
    if json:
        _print_json(answer)
    else:
        now = answer.thresholds
        standard_output.write(f"{_thresholds_line(now)}; from {_frames_line(answer.after_frames)}\n")
        standard_output.write(_doubtful_line(before, now, doubtful))


@control.command()
def snapshot(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the source.")],
    out: Annotated[Path | None, typer.Option(help="File to write; by default NAME.jpg.")] = None,
    keys: Keys = None,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Write the newest picture of a source, with its poses, as JPEG."""
    path = out or Path(f"{name.replace('/', '_')}.jpg")
    with _open(context, keys, timeout) as client:
        answer = client.snapshot(name)
    try:
        path.write_bytes(answer.jpeg)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another file with --out") from error
    standard_output.write(f"{path}: frame {answer.frame} of {answer.source}\n")


@control.command()
def record(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the file in record.folder; by default the time.")] = "",
    keys: Keys = None,
    timeout: Timeout = _TIMEOUT_S,
    json: Json = False,
) -> None:
    """Start a recording of all sources and messages."""
    with _open(context, keys, timeout) as client:
        answer = client.start_recording(name)
    if json:
        _print_json(answer)
    else:
        standard_output.write(f"recording into {answer.recording.files[0]}\n")


@control.command()
def stop_recording(
    context: typer.Context, keys: Keys = None, timeout: Timeout = _TIMEOUT_S, json: Json = False
) -> None:
    """End the recording."""
    with _open(context, keys, timeout) as client:
        answer = client.stop_recording()
    if json:
        _print_json(answer)
    else:
        state = answer.recording
        lost = f"; {sum(state.dropped.values())} packets and messages lost to a slow disk" if state.dropped else ""
        ended = f"; {state.failure}" if state.failure else ""
        standard_output.write(f"{state.packets} pictures in {', '.join(state.files)}{lost}{ended}\n")


@control.command()
def stop(context: typer.Context, keys: Keys = None, timeout: Timeout = _TIMEOUT_S) -> None:
    """End the pipeline. Frames that were given to the engine before are still published."""
    with _open(context, keys, timeout) as client:
        answer = client.stop()
    standard_output.write(f"stopping since {_clock(answer.from_unix_ns)}\n")


def keys(
    folder: Annotated[Path, typer.Argument(help="Key folder to make, or to add clients to.")],
    client: Annotated[list[str] | None, typer.Option(help="Make keys for this client; give several times.")] = None,
    revoke: Annotated[list[str] | None, typer.Option(help="Shut this client out; give several times.")] = None,
) -> None:
    """Make keys for the publisher and the control socket, and choose which clients may connect."""
    from pipeline import keys as files

    if revoke:
        files.revoke(folder, revoke)
        standard_output.write(f"revoked: {', '.join(revoke)}\n")
    written = files.make_keys(folder, client or [])
    for path in written:
        standard_output.write(f"{path}\n")
    if not written and not revoke:
        _print_clients(folder, files.clients_of(folder))


def _print_clients(folder: Path, clients: Mapping[str, Path | None]) -> None:
    """Say that a key folder is complete, and where the key file of each allowed client is."""
    if not clients:
        standard_output.write(f"{folder}: is complete; no client is allowed yet, make keys with --client NAME\n")
        return
    standard_output.write(f"{folder}: is complete; allowed clients and their key files:\n")
    for name, path in clients.items():
        standard_output.write(f"{name}: {path or 'its key file is no longer in this folder'}\n")


def _example(image: Path, annotation: Path) -> ExampleImage:
    """Read an example image, and the part of its annotation file that is about it."""
    from engines.coco import find_object
    from engines.errors import PromptError
    from xpose_client.control_messages import ExampleImage

    contents = []
    for path, what in ((annotation, "annotation"), (image, "image")):
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise PromptError(f"cannot read the {what} {path}: {error.strerror}") from error
    try:
        marked = find_object(contents[0], image).encode()
    except PromptError as error:
        raise PromptError(f"{annotation}: {error}") from error
    return ExampleImage(str(image), contents[1], str(annotation), marked)


def _lists_in(words: str) -> dict[str, bytes]:
    """Return the contents of the .toml files in a prompt, by the name that follows the @."""
    from engines.errors import PromptError, shortened
    from engines.skeletons import LONGEST_PATH

    contents: dict[str, bytes] = {}
    for item in words.split(","):
        name = " ".join(item.partition("@")[2].split())
        if name.endswith(".toml") or "/" in name:
            try:
                contents[name] = Path(name).read_bytes()
            except OSError as error:
                shown = shortened(name, LONGEST_PATH)
                raise PromptError(f"cannot read the skeleton file {shown}: {error.strerror}") from error
    return contents


def _print_json(answer: Any) -> None:
    import msgspec

    standard_output.write(msgspec.json.encode(answer) + b"\n")


def _print_status(answer: StatusAnswer, console: Console) -> None:
    from rich.table import Table

    engine, limits = answer.engine, answer.thresholds
    size = "any size" if engine.input_size is None else f"{engine.input_size[1]} x {engine.input_size[0]} px"
    console.print(f"up for {answer.uptime_s:.0f} s; {engine.model} on {engine.backend}, {engine.precision}, {size}")
    console.print(_prompt_line(answer.prompts), markup=False)
    console.print(_thresholds_line(limits))
    if answer.refused is not None:
        console.print(f"{answer.refused} attempts without an allowed key")
    table = Table("source", "state", "frames/s", "age (ms)", "published", "dropped", box=None)
    for report in answer.sources:
        state = report.status
        age = "" if report.age_s is None else f"{report.age_s * 1000:.0f}"
        dropped = ", ".join(f"{count} {reason}" for reason, count in state.drops.items())
        table.add_row(
            _plain(state.source),
            state.state,
            f"{state.frame_rate:.1f}",
            age,
            str(report.published),
            dropped,
        )
    console.print(table)
    for state in (report.status for report in answer.sources):
        if state.last_error:
            console.print(_plain(f"{state.source}: {' '.join(state.last_error.split())}"), soft_wrap=True)


def _plain(text: str) -> Any:
    """Return text in which rich does not interpret markup."""
    from rich.text import Text

    return Text(text)


def _prompt_line(prompts: PromptState) -> str:
    classes = ", ".join(f"{entry.name} ({len(entry.keypoints)} keypoints)" for entry in prompts.classes)
    return f"prompt {prompts.id}: {classes}"


def _thresholds_line(now: Thresholds) -> str:
    return f"score above {now.score:g}, doubtful above {now.doubtful:g}, NMS IoU {now.nms_iou:g}"


def _doubtful_line(before: Thresholds, now: Thresholds, given: float | None) -> str:
    """Say so where `doubtful` is not what was given, or changed without being given; else return ""."""
    if given is not None and now.doubtful != given:
        return f"doubtful is {now.doubtful:g} and not {given:g}: it is never above the score\n"
    if given is None and now.doubtful != before.doubtful:
        return f"doubtful followed the score, from {before.doubtful:g} to {now.doubtful:g}: it is never above it\n"
    return ""


def _frames_line(after_frames: Mapping[str, int]) -> str:
    frames = ", ".join(f"{frame + 1} of {source}" for source, frame in after_frames.items())
    return f"frame {frames}" if frames else "the first frame"


def _clock(unix_ns: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_ns / 1e9)) + f".{unix_ns // 1_000_000 % 1000:03}"
