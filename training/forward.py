"""The network in training: the same methods as in `XPose.detect`, with predictions of every layer and denoising.

Gradients (XPOSE.md 8.8): references are detached where they enter a layer. Predictions use references that are not
detached, so the loss of layer l also trains the refinement after layer l - 1.

After the box layers the positives of the denoising become groups next to the matching groups (`training.denoising`).
Like all groups they attend only to themselves. The negatives end there.

Legend: B images, Q box queries, P denoising queries, R pairs = P / 2, G groups, T tokens of a group, C classes,
D channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from engines.xpose import XPose
from engines.xpose.decoder import Groups
from engines.xpose.encoder import Encoded
from engines.xpose.model import Prompts
from engines.xpose.selection import class_logits
from training.denoising import Denoising
from training.matcher import Prediction
from training.targets import Targets


class TrainOutput(NamedTuple):
    """All predictions that the objective scores."""

    encoder: Prediction
    layers: tuple[Prediction, ...]
    denoising: tuple[Prediction, ...]  # one per layer: P queries of box layers, then R groups; or empty
    encoded: Encoded


def forward_train(
    model: XPose, encoded: Encoded, prompts: Prompts, targets: Targets, denoising: Denoising | None
) -> TrainOutput:
    """Run all layers after the encoder, with a prediction after each."""
    selected = model.select_queries(encoded)
    content_BQD, reference_BQ4 = model.first_queries(selected)
    encoder = Prediction(
        class_logits(selected.features_BQD, encoded.text_BCD, encoded.object_valid_BC),
        selected.reference_logits_BQ4.sigmoid(),
    )
    values = model.transformer.decoder.values(encoded)
    boxes = _BoxLayers(model, encoded, values, denoising)
    content_BQD, reference_BQ4 = boxes.run(content_BQD, reference_BQ4.detach())
    groups = model.expand(content_BQD, reference_BQ4, encoded, prompts)
    noisy = None
    if denoising is not None:
        class_BR = targets.label_BN.gather(1, denoising.target_BR)
        noisy = model.form_groups(boxes.noisy_x_BPD[:, ::2], boxes.noisy_reference_BP4[:, ::2], class_BR, prompts)
    matched, noised = _keypoint_layers(model, encoded, values, groups, noisy)
    return TrainOutput(encoder, (*boxes.predictions, *matched), (*boxes.noisy_predictions, *noised), encoded)


def first_images(encoded: Encoded, prompts: Prompts, count: int) -> tuple[Encoded, Prompts]:
    """Return the part of the first `count` images of a batch without padding."""
    valid_BC = None if encoded.object_valid_BC is None else encoded.object_valid_BC[:count]
    fewer = encoded._replace(
        memory_BND=encoded.memory_BND[:count], text_BCD=encoded.text_BCD[:count], object_valid_BC=valid_BC
    )
    keypoint_valid_BCK = None if prompts.keypoint_valid_BCK is None else prompts.keypoint_valid_BCK[:count]
    return fewer, prompts._replace(
        text_BCD=prompts.text_BCD[:count],
        object_valid_BC=valid_BC,
        keypoints_BCKD=prompts.keypoints_BCKD[:count],
        keypoint_offsets_BCK2=prompts.keypoint_offsets_BCK2[:count],
        keypoint_valid_BCK=keypoint_valid_BCK,
    )


class _BoxLayers:
    """Run the box layers on denoising and matching queries in one sequence (denoising first)."""

    def __init__(self, model: XPose, encoded: Encoded, values: list[Tensor], denoising: Denoising | None) -> None:
        self.model, self.encoded, self.values, self.denoising = model, encoded, values, denoising
        self.pad = 0 if denoising is None else denoising.content_BPD.shape[1]
        self.predictions: list[Prediction] = []
        self.noisy_predictions: list[Prediction] = []

    def run(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return contents and references (not detached) of the matching queries; store those of the denoising ones."""
        mask = None
        if self.denoising is not None:
            mask = self.denoising.attention_mask(x.shape[1])
            x = torch.cat([self.denoising.content_BPD.to(x.dtype), x], 1)
            reference = torch.cat([self.denoising.reference_BP4, reference], 1)
        decoder = self.model.transformer.decoder
        for index in range(self.model.config.box_layers):
            x = decoder.run_layer(index, x, reference.detach(), self.values[index], self.encoded, mask)
            boxes, logits = self.model.predict_boxes(x, reference, self.encoded)
            self.predictions.append(Prediction(logits[:, self.pad :], boxes[:, self.pad :]))
            if self.pad:
                self.noisy_predictions.append(Prediction(logits[:, : self.pad], boxes[:, : self.pad]))
            reference = self.model.refine_boxes(x, reference.detach())
        self.noisy_x_BPD, self.noisy_reference_BP4 = x[:, : self.pad], reference[:, : self.pad]
        return x[:, self.pad :], reference[:, self.pad :]


def _keypoint_layers(
    model: XPose, encoded: Encoded, values: list[Tensor], groups: Groups, noisy: Groups | None
) -> tuple[list[Prediction], list[Prediction]]:
    """Run matching and denoising groups side by side; return the predictions of both."""
    decoder, config = model.transformer.decoder, model.config
    matching = groups.class_BG.shape[1]
    if noisy is not None:
        groups = _beside(groups, noisy)
    mask = groups.attention_mask()
    count, tokens = groups.x_BGTD.shape[1:3]
    matched, noised = [], []
    for index in range(config.box_layers, config.decoder_layers):
        entering = groups.reference_BGT4.detach().flatten(1, 2)
        x = decoder.run_layer(index, groups.x_BGTD.flatten(1, 2), entering, values[index], encoded, mask, count)
        groups = groups._replace(x_BGTD=torch.unflatten(x, 1, (count, tokens)))
        boxes, logits, points = model.predict(groups.x_BGTD, groups.reference_BGT4, encoded)
        found = (logits, boxes, points, groups.class_BG)
        matched.append(Prediction(*(part[:, :matching] for part in found)))
        if noisy is not None:
            noised.append(Prediction(*(part[:, matching:] for part in found)))
        groups = groups._replace(reference_BGT4=model.refine_groups(groups.x_BGTD, groups.reference_BGT4.detach()))
    return matched, noised


def _beside(a: Groups, b: Groups) -> Groups:
    valid_BGT = None
    if a.valid_BGT is not None and b.valid_BGT is not None:
        valid_BGT = torch.cat([a.valid_BGT, b.valid_BGT], 1)
    return Groups(
        torch.cat([a.x_BGTD, b.x_BGTD], 1),
        torch.cat([a.reference_BGT4, b.reference_BGT4], 1),
        torch.cat([a.class_BG, b.class_BG], 1),
        valid_BGT,
    )
