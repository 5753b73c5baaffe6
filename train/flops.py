"""FLOPs of a token: the number behind every utilisation, every day and every bill.

A product of a (1, m) row with an (m, n) matrix is 2 m n operations forward and twice that backward, so a parameter of a
matrix costs 6 a token. Two conventions say what attention costs besides (L layers, width d, rows of S ids):

* dense, of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) and llm-foundry: every id meets every id of its row,
  12 L d S. Ours, where nothing else is said.
* causal: every id meets those before it, half of that. Documents kept apart meet fewer still.

The input embedding is looked up, not multiplied; a tied one is multiplied as the head. Recomputed activations are no part
of either: they are the machine's affair, not the model's.
"""

from __future__ import annotations

from train.plan import Shape


def matmul_parameters(shape: Shape) -> int:
    """Parameters that every token is multiplied with: all but an input embedding of its own."""
    return shape.num_parameters - (0 if shape.tied else shape.vocabulary_size * shape.hidden_size)


def flops_per_token(shape: Shape, length: int, *, causal: bool = False) -> float:
    """Of one token in a row of ``length``, forward and backward.

    Args:
        causal: count the half of attention that is not masked; else all of it (the PaLM convention).
    """
    attention = 12 * shape.num_layers * shape.hidden_size * length
    return 6 * matmul_parameters(shape) + (attention / 2 if causal else attention)
