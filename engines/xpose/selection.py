"""Class scores, and the selection of tokens and queries.

Shape suffixes: B batch, Q queries or tokens, C classes, D channels.
"""

import math

from torch import Tensor


def class_logits(query_BQD: Tensor, text_BCD: Tensor, object_valid_BC: Tensor | None) -> Tensor:
    """Return the similarity of each query to each class, [B, Q, C]: unscaled dot products, -inf for invalid classes."""
    logits_BQC = query_BQD.to(text_BCD.dtype) @ text_BCD.transpose(1, 2)
    if object_valid_BC is None:
        return logits_BQC
    return logits_BQC.masked_fill(~object_valid_BC[:, None], -math.inf)


def top_queries(scores_BQ: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` best scores, best first: [B, count].

    The order matters, because the learned initial content of a query depends on its rank.
    """
    return scores_BQ.topk(count, dim=1).indices


def gather_queries(x_BQD: Tensor, index_BG: Tensor) -> Tensor:
    """Return the rows `index_BG` of each image: [B, G, D]."""
    return x_BQD.gather(1, index_BG[..., None].expand(-1, -1, x_BQD.shape[-1]))
