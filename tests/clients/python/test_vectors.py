"""The test vectors that the clients of all languages decode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xpose_client.errors import SchemaError, WireError
from xpose_client.messages import SCHEMA, decode, encode, to_json_line

FILE = json.loads((Path(__file__).resolve().parents[3] / "clients" / "vectors.json").read_text(encoding="utf-8"))
VECTORS = FILE["vectors"]


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["error"] is None], ids=lambda vector: vector["name"])
def test_bytes_decode_to_the_message_of_the_vector(vector: dict[str, Any]) -> None:
    assert json.loads(to_json_line(decode(bytes.fromhex(vector["hex"])))) == vector["json"]


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["exact"]], ids=lambda vector: vector["name"])
def test_message_encodes_to_the_bytes_of_the_vector(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    assert encode(decode(data)) == data


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["error"]], ids=lambda vector: vector["name"])
def test_bytes_that_are_no_message_of_this_schema_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        decode(bytes.fromhex(vector["hex"]))
    assert isinstance(caught.value, SchemaError) == (vector["error"] == "schema")


def test_vectors_are_of_this_schema_and_of_every_kind() -> None:
    assert FILE["schema"] == SCHEMA
    topics = {bytes.fromhex(vector["hex"]).split(b"/")[0] for vector in VECTORS if vector["exact"]}
    assert topics == {b"poses", b"skeletons", b"status"}
