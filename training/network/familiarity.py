"""How much a photo is like those that a network learnt from: a second output, of what its last layer sees.

Three things tell a stranger, and each misses some that another finds: the energy of the logits (Liu et al. 2020,
"Energy-based out-of-distribution detection"); the nearest training photo (Sun et al. 2022, "Out-of-distribution
detection with deep nearest neighbors"); and the nearest class mean, where the directions in which photos of one class
differ count less, as in the Mahalanobis distance of Lee et al. 2018, but of directions alone. Their sum, each in
standard deviations among the training photos, is the familiarity. It needs no photo of a stranger.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear

PHOTOS, COMPONENTS = 512, 128  # training photos that are kept, and numbers of each
DIRECTIONS = 128  # in which photos of one class differ most, and which count less
SHRINKAGE = 0.15  # of the variances along them towards the mean variance, as Ledoit and Wolf (2004) shrink
SMALL = 1e-6
# A network that hardly tells photos apart would have its rounding for a familiarity; of trained ones all are larger
LEAST_DEVIATION = 0.01


class Familiarity(nn.Module):
    """Features float `[N, D]`, which the last layer takes, and logits `[N, C]` → familiarity float `[N]`.

    The features are first brought to their signed square roots (Perronnin et al. 2010), so that a few large ones do not
    decide alone. Photos are unit vectors along the `components`: `photos` what sets each apart from the `typical` one.
    `means` are unit vectors of classes after `lessened`. All in an order that bears a product in bfloat16, which has
    hardly a step between 0.99 and 1: it is of what differs, and lengths are divided by at the end, which engines leave
    in FP32.
    """

    components: torch.Tensor  # [Q, D]
    typical: torch.Tensor  # [Q]
    photos: torch.Tensor  # [P, Q]
    middle: torch.Tensor  # [D]
    directions: torch.Tensor  # [R, D]
    less: torch.Tensor  # [R]: the part that is taken off
    means: torch.Tensor  # [C, D]
    by_photo: torch.Tensor  # [], as those that follow
    by_mean: torch.Tensor
    by_energy: torch.Tensor
    at: torch.Tensor

    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        for name in BUFFERS:
            self.register_buffer(name, buffers[name])

    def forward(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """float `[N, D]`, `[N, C]` → float `[N]`, higher is more familiar."""
        roots = signed_roots(features)
        photo, mean = linear(roots, self.components), self.lessened(roots)
        nearest = (linear(photo, self.photos).amax(1) + (photo * self.typical).sum(1)) / length(photo)
        of_class = linear(mean, self.means).amax(1) / length(mean)
        energy = logits.logsumexp(1)
        return self.by_photo * nearest + self.by_mean * of_class + self.by_energy * energy + self.at

    def lessened(self, roots: torch.Tensor) -> torch.Tensor:
        """Roots `[N, D]` seen from the middle, shorter along the directions in which photos of one class differ."""
        return less_along(roots - self.middle, self.directions, self.less)


BUFFERS = tuple(Familiarity.__annotations__)


def less_along(rows: torch.Tensor, directions: torch.Tensor, less: torch.Tensor) -> torch.Tensor:
    """Rows `[N, D]`, of which a part of `[R]` is taken off along each of orthonormal directions `[R, D]`."""
    return rows - (linear(rows, directions) * less) @ directions


def signed_roots(features: torch.Tensor) -> torch.Tensor:
    """The square root of each feature's size, with its sign; in operators that every engine has."""
    return features / (features.abs() + SMALL).sqrt()


def length(rows: torch.Tensor) -> torch.Tensor:
    """That of rows `[N, D]`, above 0; in operators that every engine has."""
    return (rows.square().sum(1) + SMALL).sqrt()


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows `[N, D]` at length 1."""
    return rows / length(rows)[:, None]


def fitted(features: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> Familiarity:
    """That of training photos: what the last layer sees float `[N, D]`, their logits `[N, C]` and labels int `[N]`.

    They are as serving preprocesses them, in no order; N of some thousand is enough, N > 1.
    """
    roots = signed_roots(torch.from_numpy(features).double())
    _, among = np.unique(labels, return_inverse=True)  # the classes that have a photo
    own = torch.from_numpy(among)
    means = torch.stack([roots[own == k].mean(0) for k in range(own.max() + 1)])
    apart = roots - means[own]
    _, values, directions = torch.linalg.svd(apart, full_matrices=False)
    mean_variance = apart.square().mean() + SMALL**2
    variances = (1 - SHRINKAGE) * values[:DIRECTIONS] ** 2 / len(roots) + SHRINKAGE * mean_variance
    components = torch.linalg.svd(unit(roots), full_matrices=False)[2][:COMPONENTS]
    middle, directions = means.mean(0), directions[:DIRECTIONS]
    less = 1 - (SHRINKAGE * mean_variance / variances).sqrt().clamp(max=1)

    seen = unit(roots @ components.T)
    alike = seen @ seen[:PHOTOS].T
    alike.fill_diagonal_(-1)  # the nearest of the others
    lessened = unit(less_along(roots - middle, directions, less))
    of_classes = unit(torch.stack([lessened[own == k].mean(0) for k in range(len(means))]))
    parts = torch.stack([alike.amax(1), (lessened @ of_classes.T).amax(1), torch.from_numpy(logits).logsumexp(1)])
    by = 1 / parts.std(1).clamp(min=LEAST_DEVIATION)
    return Familiarity(
        components=components,
        typical=seen[:PHOTOS].mean(0),
        photos=seen[:PHOTOS] - seen[:PHOTOS].mean(0),
        middle=middle,
        directions=directions,
        less=less,
        means=of_classes,
        by_photo=by[0],
        by_mean=by[1],
        by_energy=by[2],
        at=-(by * parts.mean(1)).sum(),
    ).float()
