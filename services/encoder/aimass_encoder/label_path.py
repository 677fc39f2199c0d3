"""Labels of neighbouring tokens chosen together: a linear-chain conditional random field. Pure.

Source: Lafferty et al. 2001; forward-backward and Viterbi as in Rabiner 1989.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_path(emissions: NDArray[np.float32], transitions: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the most probable labels together: [tokens].

    `emissions` is [tokens, labels]; `transitions` is [labels, labels], the label before first.
    """
    if not len(emissions):
        return np.zeros(0, np.int64)
    best, came_from = emissions[0].astype(np.float64), np.zeros(emissions.shape, np.int64)
    for token in range(1, len(emissions)):
        reached = best[:, None] + transitions  # [labels before, labels]
        came_from[token] = reached.argmax(axis=0)
        best = reached.max(axis=0) + emissions[token]
    path = np.zeros(len(emissions), np.int64)
    path[-1] = best.argmax()
    for token in range(len(emissions) - 1, 0, -1):
        path[token - 1] = came_from[token, path[token]]
    return path


def path_scores(emissions: NDArray[np.float32], transitions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how probable each label of each token is over all paths: [tokens, labels], rows add up to 1."""
    moves = np.exp(transitions.astype(np.float64) - transitions.max())
    shifted = emissions.astype(np.float64) - emissions.max(axis=1, keepdims=True)
    weights = np.exp(shifted)  # [tokens, labels]
    forward, backward = np.ones_like(weights), np.ones_like(weights)
    for token in range(len(weights)):
        reached = weights[token] * (forward[token - 1] @ moves if token else 1.0)
        forward[token] = reached / reached.sum()
    for token in range(len(weights) - 2, -1, -1):
        reached = moves @ (weights[token + 1] * backward[token + 1])
        backward[token] = reached / reached.sum()
    scores = forward * backward
    normalised: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
    return normalised
