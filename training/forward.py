"""The network in training: the same pieces as `XPose.detect`, with every layer scored and denoising beside it.

Gradients (XPOSE.md 8.8): references are detached where they enter a layer; predictions use the un-detached ones, so the
prediction of layer l also teaches the refinement after layer l - 1.

In the keypoint layers denoising queries see their own group only. The bordered mask of the released layout would let
them see the matching queries as well, at the price of one dense (P + G T)² attention instead of G small ones.

Legend: B images, Q box queries, P denoising queries, G groups, T tokens of a group, C classes, D channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from engines.xpose import XPose
from engines.xpose.encoder import Encoded
from engines.xpose.model import Prompts
from engines.xpose.selection import class_logits
from training.denoising import Denoising
from training.matcher import Prediction


class TrainOutput(NamedTuple):
    """Everything the objective scores."""

    encoder: Prediction
    layers: tuple[Prediction, ...]
    denoising: tuple[Prediction, ...]  # one per layer; empty without denoising
    encoded: Encoded


def forward_train(model: XPose, encoded: Encoded, prompts: Prompts, denoising: Denoising | None) -> TrainOutput:
    """Run all layers after the encoder and predict after each."""
    selected = model.select_queries(encoded)
    content_BQD, reference_BQ4 = model.first_queries(selected)
    encoder = Prediction(
        class_logits(selected.features_BQD, encoded.text_BCD, encoded.object_valid_BC),
        selected.reference_logits_BQ4.sigmoid(),
    )
    values = model.transformer.decoder.values(encoded)
    boxes = _BoxLayers(model, encoded, values, denoising)
    content_BQD, reference_BQ4 = boxes.run(content_BQD, reference_BQ4.detach())
    groups, noisy = _keypoint_layers(model, encoded, values, prompts, boxes, content_BQD, reference_BQ4)
    return TrainOutput(encoder, (*boxes.predictions, *groups), (*boxes.noisy_predictions, *noisy), encoded)


def first_images(encoded: Encoded, prompts: Prompts, count: int) -> tuple[Encoded, Prompts]:
    """What belongs to the first `count` images of a batch without padding."""
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
    """The first layers, over denoising and matching queries in one sequence (denoising first)."""

    def __init__(self, model: XPose, encoded: Encoded, values: list[Tensor], denoising: Denoising | None) -> None:
        self.model, self.encoded, self.values, self.denoising = model, encoded, values, denoising
        self.pad = 0 if denoising is None else denoising.content_BPD.shape[1]
        self.predictions: list[Prediction] = []
        self.noisy_predictions: list[Prediction] = []
        self.noisy_x_BPD: Tensor | None = None
        self.noisy_reference_BP4: Tensor | None = None

    def run(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return contents and un-detached references of the matching queries; keep those of the denoising ones."""
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
        if self.pad:
            self.noisy_x_BPD, self.noisy_reference_BP4 = x[:, : self.pad], reference[:, : self.pad]
        return x[:, self.pad :], reference[:, self.pad :]


def _keypoint_layers(
    model: XPose,
    encoded: Encoded,
    values: list[Tensor],
    prompts: Prompts,
    boxes: _BoxLayers,
    x_BQD: Tensor,
    reference_BQ4: Tensor,
) -> tuple[list[Prediction], list[Prediction]]:
    decoder, config = model.transformer.decoder, model.config
    groups = model.expand(x_BQD, reference_BQ4, encoded, prompts)
    mask = groups.attention_mask()
    count, tokens = groups.x_BGTD.shape[1:3]
    noisy_x, noisy_reference = boxes.noisy_x_BPD, boxes.noisy_reference_BP4
    predictions, noisy_predictions = [], []
    for index in range(config.box_layers, config.decoder_layers):
        entering = groups.reference_BGT4.detach().flatten(1, 2)
        x = decoder.run_layer(index, groups.x_BGTD.flatten(1, 2), entering, values[index], encoded, mask, count)
        groups = groups._replace(x_BGTD=torch.unflatten(x, 1, (count, tokens)))
        found, logits, points = model.predict(groups.x_BGTD, groups.reference_BGT4, encoded)
        predictions.append(Prediction(logits, found, points, groups.class_BG))
        groups = groups._replace(reference_BGT4=model.refine_groups(groups.x_BGTD, groups.reference_BGT4.detach()))
        if noisy_x is not None and noisy_reference is not None and boxes.denoising is not None:
            noisy_x = decoder.run_layer(
                index,
                noisy_x,
                noisy_reference.detach(),
                values[index],
                encoded,
                None,
                boxes.denoising.groups,
            )
            found, logits = model.predict_boxes(noisy_x, noisy_reference, encoded)
            noisy_predictions.append(Prediction(logits, found))
            noisy_reference = model.refine_boxes(noisy_x, noisy_reference.detach())
    return predictions, noisy_predictions
