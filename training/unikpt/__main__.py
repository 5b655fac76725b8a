"""Builds the unified index from the data sets that are present and compares it with the published figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import PromptError
from engines.skeletons import load_skeleton
from training.unikpt.catalogue import DATA_SETS, LSPET, UNIKPT, refusing
from training.unikpt.coco_layout import CocoRules, read_coco_layout
from training.unikpt.images import ImageFinder, read_image
from training.unikpt.index import Index, build_index, save_index, table
from training.unikpt.overlay import write_overlays
from training.unikpt.schema import SKIPPED_SILENTLY, ImageError, Record, Report, UniKPTError

_SHOWN_PER_KIND = 5

RootOption = Annotated[
    Path | None, typer.Option(help="Folder with one folder per data set.", exists=True, file_okay=False)
]
OnlyOption = Annotated[list[str] | None, typer.Option(help="Limit to this data set; repeat for several.")]
UnikptOption = Annotated[Path | None, typer.Option(help="The published unikpt_training_annotations.json.", exists=True)]
LspetOption = Annotated[
    Path | None, typer.Option(help="Folder of Leeds Sports Pose Extended.", exists=True, file_okay=False)
]
CocoOption = Annotated[Path | None, typer.Option(help="A keypoint file of your own in COCO's layout.", exists=True)]
SkeletonOption = Annotated[str, typer.Option(help="Its keypoint list: a published name or a .toml file.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of the images of --coco or --unikpt.", exists=True)]
IndexOption = Annotated[Path | None, typer.Option(help="Write the index here, one JSON line per image.")]
OverlayOption = Annotated[Path | None, typer.Option(help="Write pictures with boxes and keypoints into this folder.")]
OverlayCountOption = Annotated[int, typer.Option(min=1, help="Pictures per data set.")]
CheckOption = Annotated[bool, typer.Option(help="Decode every image now and drop those that cannot be decoded.")]
ProblemsOption = Annotated[Path | None, typer.Option(help="Write every problem into this file, one per line.")]


def main(
    root: RootOption = None,
    only: OnlyOption = None,
    unikpt: UnikptOption = None,
    lspet: LspetOption = None,
    coco: CocoOption = None,
    skeleton: SkeletonOption = "",
    images: ImagesOption = None,
    index: IndexOption = None,
    overlay: OverlayOption = None,
    overlay_count: OverlayCountOption = 4,
    check_images: CheckOption = False,
    problems: ProblemsOption = None,
) -> None:
    """Read keypoint data sets into one index and compare it with the published figures of UniKPT."""
    if not any((root, unikpt, lspet, coco)):
        raise typer.BadParameter("give at least one of --root, --unikpt, --lspet and --coco")
    unknown = sorted(set(only or ()) - {data_set.slug for data_set in DATA_SETS})
    if unknown:
        raise typer.BadParameter(f"--only {unknown[0]}: known are {', '.join(one.slug for one in DATA_SETS)}")
    report = Report()
    try:
        built = build_index(root, report, frozenset(only or ())) if root else Index()
        if unikpt:
            _add_file(built, "unikpt", "UniKPT file", unikpt, images, UNIKPT, report)
        if lspet:
            for path in sorted(lspet.glob("annotations_*.json")):
                _add_file(built, "lspet", "LSP-extended", path, lspet, LSPET, report)
        if coco:
            load_skeleton(skeleton)
            _add_file(built, "own", coco.name, coco, images, CocoRules("own", skeleton), report)
    except (UniKPTError, PromptError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    if check_images:
        built.records = [record for record in built.records if _readable(record, report)]
    _finish(built, report, index, overlay, overlay_count, problems)


def _add_file(
    built: Index, slug: str, title: str, path: Path, images: Path | None, rules: CocoRules, report: Report
) -> None:
    finder = ImageFinder(images or path.parent)
    built.add(slug, title, refusing(read_coco_layout(path, finder, rules, report), path, report))


def _readable(record: Record, report: Report) -> bool:
    try:
        height, width = read_image(record).shape[:2]
    except ImageError as error:
        report.add("image unreadable", record.archive or record.image_path, record.image_path.name, str(error))
        return False
    if (width, height) != (record.width, record.height):
        text = f"is {width} x {height}, annotated as {record.width} x {record.height}; skipped"
        report.add("image unreadable", record.archive or record.image_path, record.image_path.name, text)
        return False
    return True


def _finish(
    built: Index, report: Report, index: Path | None, overlay: Path | None, overlay_count: int, problems: Path | None
) -> None:
    typer.echo(table(built))
    for data_set in built.missing:
        typer.echo(
            f"missing: {data_set.title} (looked for a folder {' or '.join(data_set.folders)} with its annotations)"
        )
    for kind, count in report.counts.most_common():
        typer.echo(f"{count:>7,}  {kind}")
        shown = 0 if kind in SKIPPED_SILENTLY else _SHOWN_PER_KIND
        for problem in [one for one in report.problems if one.kind == kind][:shown]:
            typer.echo(f"         {problem.file}, id {problem.id}: {problem.text}")
    if problems:
        problems.write_text("".join(f"{problem}\n" for problem in report.problems), encoding="utf-8")
    if index:
        typer.echo(f"{index}: {save_index(index, built.records):,} records")
    if overlay:
        typer.echo(f"{overlay}: {len(write_overlays(built.records, overlay, overlay_count))} pictures")
    if not built.records:
        typer.echo("nothing was read", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
