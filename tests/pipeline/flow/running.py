"""Pipelines of fakes, run to their end."""

import json
from pathlib import Path
from typing import Any

from engines.prompts import PromptClass
from pipeline.config import PipelineConfig
from pipeline.flow.pipeline import Pipeline, PipelineResult
from pipeline.sources import Source
from tests.pipeline.fakes import MUG, FakeEngine

END_S = 15.0


def make_pipeline(*sources: Source, config: PipelineConfig | None = None, **outputs: Any) -> Pipeline:
    """A pipeline with these sources, and `poses` and `video` as outputs."""
    pipeline = Pipeline(config or PipelineConfig(), **outputs)
    for source in sources:
        pipeline.add(source)
    return pipeline


def run(
    pipeline: Pipeline, engine: FakeEngine | None = None, prompts: tuple[PromptClass, ...] = (MUG,)
) -> PipelineResult:
    """Run the pipeline to its end, or fail: no test waits for a pipeline that hangs."""
    pipeline.start(engine or FakeEngine(), prompts)
    assert pipeline.wait(END_S), "the pipeline hangs"
    return pipeline.finish()


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The messages of a pose file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
