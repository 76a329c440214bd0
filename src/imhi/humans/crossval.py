"""What a combination of several values can tell of the ratings of rows that it never learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FEWEST_POSTS", "FOLDS", "REPEATS", "out_of_fold"]

FOLDS, REPEATS = 10, 10
# With fewer, a fold's fit has hardly more rows than values.
FEWEST_POSTS = 30
PENALTIES = (-1, 3, 13)


def out_of_fold(
    features: np.ndarray, target: np.ndarray, *, posts: Sequence[str], files: Sequence[np.ndarray], seed: int = 0
) -> np.ndarray:
    """Ridge predictions of `target`, each by fits that saw no row of its post; shape (rows,).

    Posts are dealt into ten folds, ten times over; a row's prediction is the mean over these.  Means are taken within
    each file and from the rows of the fit alone, so that what is told is order within a file.  The penalty is chosen
    in each fit by leave-one-out over its rows (nested).

    Parameters
    ----------
    features, target : shape (rows, values) and (rows,).
    posts : what must stay together, shape (rows,).
    files : row numbers of each file.

    Source: Hoerl and Kennard, "Ridge regression", Technometrics 1970; nested cross-validation: Varma and Simon, "Bias
    in error estimation when using cross-validation for model selection", BMC Bioinformatics 2006.
    """
    import numpy as np
    from sklearn.linear_model import RidgeCV

    units, unit_of_row = np.unique(np.asarray(posts), return_inverse=True)
    rng = np.random.default_rng(seed)
    told = np.zeros(len(target))
    for _ in range(REPEATS):
        fold_of_unit = rng.permutation(len(units)) % FOLDS
        for fold in range(FOLDS):
            unseen = fold_of_unit[unit_of_row] == fold
            inputs, wanted = features.astype(float).copy(), target.astype(float).copy()
            for rows in files:
                seen = rows[~unseen[rows]]
                if len(seen):
                    inputs[rows] -= inputs[seen].mean(axis=0)
                    wanted[rows] -= wanted[seen].mean()
            spread = inputs[~unseen].std(axis=0)
            inputs /= np.where(spread > 0, spread, 1)
            fit = RidgeCV(np.logspace(*PENALTIES)).fit(inputs[~unseen], wanted[~unseen])
            told[unseen] += fit.predict(inputs[unseen]) / REPEATS
    return told
