"""One training run: steps, schedule, average, checkpoints, progress.

All random choices are functions of (seed, rank, step), so an interrupted run continues with exactly the same numbers.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.tensorboard import SummaryWriter

from engines.scores import kept_of
from engines.skeletons import load_skeleton
from engines.xpose.encoder import Encoded
from engines.xpose.model import Prompts
from training import metrics
from training.alignment import contrast, crowding, name_examples
from training.data.cache import ImageCache
from training.data.sample import Sample
from training.data.stream import Stream, normalise
from training.denoising import make_denoising
from training.distributed import Processes
from training.draws import Canvases, Drawn, Draws, Marked, draw_steps
from training.forward import first_images, forward_train
from training.objective import objective, weighted_sum
from training.optimiser import Optimiser
from training.pictures import sheet
from training.predict import Predictor, in_batches
from training.prompts import StepPrompts, spread_words
from training.recipe import Phase, Recipe
from training.state import Average, Trainee, load_checkpoint, load_start, save_checkpoint, save_snapshot
from training.targets import Offer, Targets

logger = logging.getLogger(__name__)
EVALUATION_BATCH = 16
PICTURE_THRESHOLD = 0.3


class Trainer:
    """A run in a folder: checkpoint.pt, snapshot.safetensors, log.jsonl and TensorBoard files.

    Args:
        workers: number of processes that draw canvases in advance; 0 draws them in this process.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        folder: Path,
        workers: int = 0,
    ) -> None:
        self.recipe, self.folder, self.workers = recipe, folder, workers
        self.processes = Processes()
        self.stream = Stream(recipe.sources, data, recipe.seed)
        self.evaluation = self._evaluation_samples(data)
        self.book = {name: row for row, name in enumerate(self.stream.vocabulary)}
        self.trainee = Trainee(recipe)
        if recipe.start_from:
            load_start(self.trainee, recipe)
        elif not (folder / "checkpoint.pt").exists():
            words = self.stream.vocabulary
            error = spread_words(self.trainee.model, self.trainee.clip_model, words, recipe.spread_steps, recipe.seed)
            logger.info("the words are separated: mean squared error %.4f of 1", error)
        self.trainee.to(self.processes.device)
        trainee = self.trainee
        self.optimiser = Optimiser(trainee.model, trainee.clip_model, [*trainee.dense.parameters()], recipe)
        self.average = Average(self.trainee, recipe.ema_decay)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "checkpoint.pt").exists():
            self.step = load_checkpoint(folder / "checkpoint.pt", self.trainee, self.average, self.optimiser)
            logger.info("going on at step %d of %d", self.step, recipe.steps)

    def _evaluation_samples(self, data: Path) -> list[Sample]:
        if not self.recipe.evaluate_cache:
            return []
        cache = ImageCache(data / self.recipe.evaluate_cache)
        return [cache[i] for i in range(min(len(cache), self.recipe.evaluate_images))]

    def run(self, on_step: Callable[[int, dict[str, float]], None] | None = None, stop_at: int | None = None) -> None:
        """Train to the end of the recipe, or until `stop_at` steps are done, then save."""
        writer = SummaryWriter(str(self.folder / "tensorboard")) if self.processes.rank == 0 else None
        last = self.recipe.steps if stop_at is None else min(stop_at, self.recipe.steps)
        with (self.folder / f"log{self.processes.rank}.jsonl").open("a") as log_file:
            draws = self.draws(last)
            while self.step < last:
                log = self.train_step(draws)
                log_file.write(json.dumps({"step": self.step, **{k: round(v, 5) for k, v in log.items()}}) + "\n")
                log_file.flush()
                self.step += 1
                if on_step is not None:
                    on_step(self.step, log)
                if writer is not None:
                    self._report(writer, log)
        if writer is not None:
            self.save()
            writer.close()
        self.processes.close()

    def draws(self, last: int) -> Iterator[Drawn]:
        """Return the inputs of the steps from now to `last` - 1."""
        return draw_steps(Draws(self.recipe, self.stream, self.processes.rank), self.step, last, self.workers)

    def train_step(self, draws: Iterator[Drawn]) -> dict[str, float]:
        """Do one optimiser step with the next of `draws` and return the losses."""
        phase, _ = self.recipe.phase_at(self.step)
        rate = self.recipe.learning_rate(self.step)
        self.optimiser.set_rates(rate, rate * phase.backbone_lr)
        self.trainee.train()
        self._freeze(phase)
        self.optimiser.zero_grad()
        log: dict[str, float] = {}
        for drawn in islice(draws, phase.accumulate):
            loss, log = self._named_examples(drawn) if isinstance(drawn, Marked) else self._micro_batch(phase, drawn)
            (loss / phase.accumulate).backward()  # type: ignore[no-untyped-call]
        self.processes.average_gradients(self.trainee.parameters())
        norm = nn.utils.clip_grad_norm_(self.trainee.parameters(), self.recipe.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"step {self.step}: the gradient is not finite; lower the learning rate, then run the same command "
                "again to continue from the last checkpoint"
            )
        self.optimiser.step()
        self.average.update(self.trainee)
        return {**log, "gradient": float(norm), "lr": rate}

    def _freeze(self, phase: Phase) -> None:
        trainee, model = self.trainee, self.trainee.model
        learning: dict[str, list[nn.Module]] = {
            "all": [trainee],
            "image_tower": [trainee.clip_model.visual, model.pos_proj, model.padding],
            "head": [trainee.dense],
        }
        trainee.requires_grad_(False)
        nn.ModuleList(learning[phase.learns]).requires_grad_()

    def _micro_batch(self, phase: Phase, drawn: Canvases) -> tuple[Tensor, dict[str, float]]:
        recipe, device = self.recipe, self.processes.device
        torch.manual_seed(drawn.seed)  # drop path
        offer = drawn.offer._replace(object_valid_BC=drawn.offer.object_valid_BC.to(device))
        targets, modality_B = drawn.targets.to(device), drawn.modality_B.to(device)
        examples = drawn.examples.to(device).parted_by(len(offer.names)) if drawn.examples else None
        through = round(phase.batch * phase.decoder_share)
        generator = torch.Generator(device).manual_seed(drawn.seed + 1)
        with torch.device(device), self._precision():
            trainee = self.trainee
            prompts = StepPrompts(trainee.model, trainee.clip_model, offer, examples)
            chosen = prompts.of_images(modality_B)
            encoded = trainee.model.encode(normalise(drawn.images_BHW3.to(device)), chosen)
            extra = {}
            if recipe.weights.dense:
                extra["dense"] = trainee.dense(encoded, prompts, modality_B, targets)
            if recipe.weights.alignment and examples:
                extra["alignment"] = contrast(prompts)
            if recipe.weights.crowding:
                words_CKD = prompts.by_modality.keypoints_BCKD[0]
                extra["crowding"] = crowding(words_CKD, prompts.keypoint_valid_CK, prompts.names_CK)
            total, log = weighted_sum(extra, recipe.weights)
            if phase.detached_decoder:
                encoded = encoded._replace(memory_BND=encoded.memory_BND.detach())
            if through:
                book_C = torch.tensor([self.book[name] for name in offer.names])
                decoded = self._decode(
                    *first_images(encoded, chosen, through), targets.first_images(through), book_C, generator
                )
                total, log = total + decoded[0], {**log, **decoded[1], "total": log["total"] + decoded[1]["total"]}
        return total, log

    def _named_examples(self, drawn: Marked) -> tuple[Tensor, dict[str, float]]:
        """Return the losses of examples against the words of the whole vocabulary."""
        trainee, vocabulary = self.trainee, self.stream.vocabulary
        skeletons = tuple(load_skeleton(skeleton) for skeleton in vocabulary.values())
        offer = Offer(tuple(vocabulary), skeletons, torch.ones(1, len(vocabulary), dtype=torch.bool))
        with torch.device(self.processes.device), self._precision():
            with torch.no_grad():
                words = StepPrompts(trainee.model, trainee.clip_model, offer, None)
            loss = name_examples(
                trainee.model, trainee.clip_model, words, drawn.categories, drawn.examples.to(self.processes.device)
            )
        return loss, {"total": float(loss.detach())}

    def _decode(
        self, encoded: Encoded, prompts: Prompts, targets: Targets, book_C: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the matched losses of the decoder and of the proposals of the encoder."""
        denoising = make_denoising(self.trainee.model.label_enc, targets, book_C, self.recipe.denoising, generator)
        output = forward_train(self.trainee.model, encoded, prompts, targets, denoising)
        count = max(1.0, self.processes.mean(float(targets.total)))
        with torch.autocast(self.processes.device.type, enabled=False):
            return objective(output, targets, denoising, self.recipe.weights, count)

    def _precision(self) -> AbstractContextManager[object]:
        context = ExitStack()
        kind = self.processes.device.type
        if kind == "cpu":  # for small windows and groups, the backward of fused attention is slower than plain products
            context.enter_context(sdpa_kernel(SDPBackend.MATH))
        if self.recipe.precision == "bf16":
            context.enter_context(torch.autocast(kind, torch.bfloat16))
        return context

    def _report(self, writer: SummaryWriter, log: dict[str, float]) -> None:
        if self.step % 10 == 0:
            for name, value in log.items():
                writer.add_scalar(name, value, self.step)
        if self.recipe.snapshot_steps and self.step % self.recipe.snapshot_steps == 0:
            self.save()
        if self.recipe.evaluate_steps and self.step % self.recipe.evaluate_steps == 0:
            self._evaluate(writer)

    def _evaluate(self, writer: SummaryWriter) -> None:
        """Log AP, PCK and a picture of predictions on the first images of the evaluation cache."""
        trained, samples = self.averaged(), self.evaluation
        predictor = Predictor(
            trained.model,
            trained.clip_model,
            self.stream.vocabulary,
            "text",
            None,
            self.recipe.phases[-1].size_hw,
            kept_of(self.recipe.model).nms_iou,
        )
        found = [result for batch in in_batches(samples, EVALUATION_BATCH) for result in predictor.find(batch)]
        precision = metrics.average_precision(samples, found, self.stream.vocabulary)["all"]
        right = metrics.correct_keypoints(samples, found)["pck"]
        writer.add_scalar("evaluation/ap", precision, self.step)
        writer.add_scalar("evaluation/pck", right, self.step)
        picture = sheet(samples[:8], found[:8], 4, PICTURE_THRESHOLD)
        writer.add_image("evaluation/predictions", picture, self.step, dataformats="HWC")
        logger.info("step %d: AP %.3f, PCK %.3f of the best-scoring object", self.step, precision, right)

    def averaged(self) -> Trainee:
        """Return a copy of the trainee with the averaged weights, in evaluation mode."""
        copy = Trainee(self.recipe)
        copy.load_state_dict(self.average.tensors)
        return copy.eval()

    def save(self) -> None:
        """Write the checkpoint and the averaged weights."""
        save_checkpoint(self.folder / "checkpoint.pt", self.trainee, self.average, self.optimiser, self.step)
        save_snapshot(self.folder / "snapshot.safetensors", self.averaged(), self.stream.vocabulary)
