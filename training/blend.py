"""Interpolate the weights of two snapshots: python -m training.blend FIRST SECOND --out FILE.

If the second snapshot was trained from the first on new data, interpolated weights forget less of the old data.
Source: WiSE-FT, arXiv:2109.01903, section 3.
"""

from pathlib import Path
from typing import Annotated

import typer

from engines.checkpoint import load_weights, save_weights, trained_categories
from engines.errors import XPoseError
from training.state import move


def main(
    first: Annotated[Path, typer.Argument(help="a snapshot")],
    second: Annotated[Path, typer.Argument(help="a snapshot that was trained from the first")],
    out: Annotated[Path, typer.Option(help="the .safetensors file to write")],
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of the second snapshot")] = 0.5,
    model: Annotated[str, typer.Option(help="nano, swin-t or swin-l")] = "nano",
) -> None:
    """Write interpolated weights of two snapshots, with the categories of the second."""
    try:
        ours, theirs = load_weights(model, str(first)), load_weights(model, str(second))
        categories = trained_categories(model, str(second))
    except XPoseError as error:
        raise SystemExit(str(error)) from error
    for part, other in zip(ours, theirs, strict=True):
        move(part.state_dict(), other.state_dict(), share)
    save_weights(out, *ours, categories)


if __name__ == "__main__":
    typer.run(main)
