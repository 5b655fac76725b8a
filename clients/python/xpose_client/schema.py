"""Describe the wire for people who write a client in another language.

    python -m xpose_client.schema FOLDER

writes `wire.schema.json`, a JSON Schema of all messages, and `FIELDS.md`, a table of all fields with their units.
`CONTROL.md` is the same table for the control socket. All are made from the message types and their docstrings, in
which a field is written as `name (unit): meaning`.
"""

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
from msgspec import inspect as types

from xpose_client import control_messages as control
from xpose_client.messages import SCHEMA, TOPICS, SkeletonClass, TrackMessage

_MESSAGES: dict[type, str] = {kind: f"{prefix}<source>" for prefix, kind in TOPICS.items()}
_PARTS: dict[type, str] = {TrackMessage: "part of PoseMessage", SkeletonClass: "part of SkeletonMessage"}
_CONTROL: dict[type, str] = {
    **dict.fromkeys(get_args(control.Request), "request"),
    control.ExampleImage: "part of PromptsRequest",
    **dict.fromkeys(get_args(control.Answer), "answer"),
    control.SourceReport: "part of StatusAnswer",
    control.EngineState: "part of StatusAnswer",
    control.Categories: "part of StatusAnswer",
    control.Thresholds: "part of StatusAnswer and ThresholdsAnswer",
    control.PromptState: "part of StatusAnswer and PromptsAnswer",
    control.PromptClassState: "part of PromptState",
    control.RecordingState: "part of StatusAnswer and RecordingAnswer",
}
_FIELD = re.compile(r"    (\w+)(?: \(([^)]+)\))?: (.*)")
_TABLE_HEAD = ("| field | type | unit | meaning |", "|---|---|---|---|")
_SIMPLE = {
    types.IntType: "integer",
    types.FloatType: "number",
    types.StrType: "string",
    types.BoolType: "boolean",
    types.BytesType: "bytes",
    types.NoneType: "null",
}


class Documented(NamedTuple):
    """What the docstring says of one field."""

    unit: str
    meaning: str


def fields_of(kind: type) -> "dict[str, Documented]":
    """Return what the docstring of a message type says of each field, by its name in Python."""
    lines = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].splitlines()
    fields: dict[str, Documented] = {}
    name = ""
    for line in lines:
        start = _FIELD.fullmatch(line)
        if start:
            name = start[1]
            fields[name] = Documented(start[2] or "", start[3].strip())
        else:
            fields[name] = Documented(fields[name].unit, f"{fields[name].meaning} {line.strip()}")
    return fields


def json_schema() -> "dict[str, Any]":
    """Return the JSON Schema (draft 2020-12) of all messages, with the units and meanings of their fields."""
    references, components = msgspec.json.schema_components(tuple(_MESSAGES), ref_template="#/$defs/{name}")
    for kind in (*_MESSAGES, *_PARTS):
        component = components[kind.__name__]
        component["description"] = _summary(kind)
        documented = fields_of(kind)
        for field in msgspec.structs.fields(kind):
            unit, meaning = documented[field.name]
            described = component["properties"][field.encode_name]
            described["description"] = meaning
            if unit:
                described["unit"] = unit
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"X-Pose Stream, wire schema {SCHEMA}",
        "description": "The body of a message: msgpack on the wire, JSON in files. Ignore fields that you do not know.",
        "anyOf": list(references),
        "$defs": components,
    }


def wire_table() -> str:
    """Return all fields of the wire as Markdown, one table for each type."""
    places = {kind: f"topic `{where}`" for kind, where in _MESSAGES.items()}
    return _tables(f"# Fields of wire schema {SCHEMA}", "messages.py", {**places, **_PARTS})


def control_table() -> str:
    """Return all fields of requests and answers as Markdown, one table for each type."""
    places = {kind: f"{where}{_tag_of(kind)}" for kind, where in _CONTROL.items()}
    return _tables("# Requests and answers of the control socket", "control_messages.py", places)


def _tag_of(kind: type) -> str:
    """The value of the key `type`, for the title of a request or an answer."""
    tag = types.type_info(kind).tag  # type: ignore[attr-defined]
    return "" if tag is None else f", `type` is `{tag}`"


def _tables(title: str, file: str, places: "dict[type, str]") -> str:
    parts = [
        f"{title}\n\nWritten by `python -m xpose_client.schema clients` from the docstrings of "
        f"[{file}](python/xpose_client/{file}).\n"
    ]
    for kind, place in places.items():
        documented = fields_of(kind)
        rows = [
            f"| `{field.encode_name}` | {_type_of(field)} | {documented[field.name].unit} "
            f"| {documented[field.name].meaning} |"
            for field in msgspec.structs.fields(kind)
        ]
        table = [*_TABLE_HEAD, *rows, ""] if rows else []
        parts.append("\n".join([f"\n## {kind.__name__}: {place}\n\n{_summary(kind)}\n", *table]))
    return "".join(parts)


def write(folder: Path) -> "list[Path]":
    """Write the files into `folder` and return their paths."""
    contents = {
        "wire.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        "FIELDS.md": wire_table(),
        "CONTROL.md": control_table(),
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in contents]


def _summary(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\nAttributes:")[0].split())


def _type_of(field: msgspec.structs.FieldInfo) -> str:
    text = _type_text(types.type_info(field.type))
    if field.required:
        return text
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return f"{text}; {json.dumps(default)} if absent"


def _type_text(info: types.Type) -> str:
    """Name a type as people who do not know Python do."""
    if isinstance(info, types.UnionType):
        return " or ".join(_type_text(part) for part in info.types)
    if isinstance(info, types.TupleType):
        return "[" + ", ".join(_type_text(part) for part in info.item_types) + "]"
    if isinstance(info, types.ListType):
        return f"list of {_type_text(info.item_type)}"
    if isinstance(info, types.DictType):
        return f"map of {_type_text(info.key_type)} to {_type_text(info.value_type)}"
    if isinstance(info, types.StructType):
        return info.cls.__name__
    return _SIMPLE[type(info)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m xpose_client.schema FOLDER")
    for path in write(Path(sys.argv[1])):
        print(path)
