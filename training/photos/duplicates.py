"""Find photos of one plate before they are split into training and validation.

A picture on both sides of a split is a leak: the score then measures memory. Identical files are the easy case;
re-encoded, resized, cropped, mirrored and recoloured copies are as common, and so are several shots of one dish. No
step compares all pairs or holds all photos in memory:

1. Each file is read once, as a small thumbnail: SHA-256, perceptual hash, colour histogram, SIFT features and what a
   network with published weights sees, kept in a temporary file of 88 kB a photo (TMPDIR chooses where).
2. The shortlist: each photo's nearest neighbours by colours, by perceptual hash, by a VLAD descriptor, which pools
   the SIFT features into one vector that crops and recolouring hardly move (Jégou et al. 2012, TPAMI 34), and by the
   network's vector, which neither mirroring nor another angle moves far.
3. The check: SIFT matches of two photos must agree on one affine map (RANSAC). One photo is laid over the other by it,
   and inside the outline of the matches both must look alike, which a watermark that they share does not pass. A
   mirrored photo has the same features with their parts in another order, so its neighbours are matched both ways.

"Same picture" and "same scene" differ outside the matches. However cropped, scaled, stretched or recoloured, a copy is
an affine map of its original *everywhere*: nearly all matches agree, and all that overlaps correlates. A second shot
from elsewhere sees depth, so one map fits a part of it and the rest is displaced; a dish cut out and laid on another
background ends alike. Correlation ignores brightness and contrast.

"Perhaps the same plate" is what geometry cannot tell: two photos that the network finds alike, and either clearly more
so than it finds each and the rest of the set, or a few matches agree as well. It is for a person to look at, and a
reason to keep both on one side, no more.
"""

import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal, get_args

import cv2
import imagehash
import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from runtime.errors import BadPhoto, SajiError
from runtime.preprocess import decode, fit
from runtime.spec import Geometry
from training.photos.features import Backbone
from training.photos.photo_set import unchanged
from training.progress import Progress, in_threads, silent

Kind = Literal["identical", "same picture", "same scene", "perhaps the same plate"]

SIDE = 320  # longer side of a thumbnail, pixels
FEATURES = 600  # SIFT features kept of a thumbnail, the strongest
COLOUR_BINS = (16, 4, 4)  # of the hue, saturation and value histogram
LOOKALIKES = 8  # nearest photos that are checked, once by VLAD descriptor and once by colours
HASH_LOOKALIKES, HASH_BITS = 4, 12  # nearest perceptual hashes, if they differ by at most so many of 64 bits
NEAREST = 2  # nearest photos by the network's vector, which are also compared mirrored
WORDS, COMPONENTS, SAMPLE = 256, 256, 1000  # VLAD: visual words, dimensions kept, photos to learn both from
RATIO = 0.75  # nearest to second nearest descriptor distance; Lowe 2004 (IJCV 60, section 7.1) rejects above 0.8
REPROJECTION = 4.0  # thumbnail pixels by which a match may miss the affine map
INLIERS = 20  # matches that must agree on the map
BLUR = 2.0  # standard deviation, thumbnail pixels: correlation forgives resampling and slight misalignment
# Measured: second shots correlate by 0.78 or more inside the outline of their matches, which covers 0.08 or more of
# the overlap; photos that share a watermark only stay below 0.5 or 0.02
OUTLINE_CORRELATION, OUTLINE_SHARE = 0.65, 0.05
# Measured: of copies, 0.87 or more of the matches agree and the overlap correlates by 0.8 or more (0.88 without text
# laid over them); second shots stay below 0.85 and 0.85, and below 0.8 in one of the two
AGREEING, OVERLAP_CORRELATION = 0.8, 0.8

# Measured on 805 food photos, of which a person found 19 pairs to show one plate: all have a cosine of 0.80 or more,
# 0.064 or more above the cosine of either photo and its rival, the 15th nearest; of all pairs 47 are like that. Without
# the second bound there are 122, and they join a third of all soups. In a small set the rival is nearer, or it would
# be of another class, and all photos of a class would stand out
LIKENESS, LEAD = 0.79, 0.06
RIVAL, RIVAL_SHARE, RIVAL_AT_LEAST = 15, 20, 3  # one photo of 20, at least the third nearest
# Two photos that the network finds as alike as this perhaps show one plate where so many matches agree: of the 19 pairs
# 13 are like that, of the others 3, which show one plate too
ALIKE, FEWER_INLIERS = 0.75, 10

_SIFT = [("features", "i4"), ("points", "f4", (FEATURES, 2)), ("descriptors", "u1", (FEATURES, 128))]
_PHOTO = np.dtype([("hash", "?", 64), ("colours", "f4", COLOUR_BINS), ("seen", "f4", 1280), *_SIFT])
# A descriptor has 4 × 4 cells along and across its keypoint's direction, with 8 directions each (Lowe 2004, section 6):
# in a mirror the rows of cells and the sense of rotation are turned round
_MIRRORED = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()
# Sides of the square that the network sees: as large as it was trained with, or as the photo has detail for
SQUARES, SEEN_AT_ONCE = (96, 128, 160, 192, 224), 16


@dataclass(frozen=True, slots=True)
class Pair:
    """Two duplicates, as indexes into the given paths (`first` < `second`), and the evidence."""

    first: int
    second: int
    kind: Kind
    inliers: int  # SIFT matches that agree on one affine map; 0 for identical files, which are not matched
    hash_distance: int  # bits by which the two 64-bit perceptual hashes differ
    correlation: float  # of the grey values where the aligned pictures overlap, -1 to 1; NaN where none are aligned
    likeness: float  # cosine of what the network sees in the two


def find_duplicates(
    paths: Sequence[Path], progress: Progress = silent, hashes: Sequence[str] | None = None
) -> list[Pair]:
    """The duplicate pairs among the photos, sorted by index.

    Unreadable files are left out: it is for the caller to report them. Of several identical files only the first is
    compared with other photos, and each further one is paired with that first; `groups` gives the whole clusters.
    With `hashes`, the SHA-256 of each, all could be read before, and SajiError is raised where one is another file now,
    or none: its duplicates would be missed.
    """
    pairs: list[Pair] = []
    originals: dict[str, int] = {}  # SHA-256 to index
    # Photos and pairs are what runs in parallel; threads inside each small matrix product would slow that down
    with tempfile.TemporaryFile() as file, threadpool_limits(1):
        photos = _Photos(paths, list(hashes or [""] * len(paths)), _room(file, len(paths)))
        read = in_threads(photos.read, range(len(paths)), "reading photos", progress)
        for index, (digest, square) in enumerate(read):
            if digest and (first := originals.setdefault(digest, index)) != index:
                pairs.append(Pair(first, index, "identical", 0, 0, 1.0, 1.0))
            elif digest:
                photos.look(index, square)
        photos.look_at_the_rest()
        shortlist = _shortlist(photos, np.array(list(originals.values()), int))
        checked = in_threads(photos.compare, shortlist, "comparing look-alikes", progress)
        pairs += [pair for pair in checked if pair]
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def _room(file: IO[bytes], photos: int) -> np.ndarray:
    """A record for each photo, in a file whose room on the disk is taken first.

    Where a disk is full, writing to the map of a file ends the process. Raises SajiError instead.
    """
    records, place = max(1, photos), tempfile.gettempdir()
    needed = records * _PHOTO.itemsize
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, needed)
        elif needed > shutil.disk_usage(place).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise SajiError(
            f"comparing {photos} photos needs {needed / 1e6:.0f} MB in {place} ({error.strerror}); "
            "set TMPDIR to a folder with more"
        ) from None
    return np.memmap(file, _PHOTO, "w+", shape=records)


def groups(count: int, pairs: Iterable[Pair], kinds: Sequence[Kind] = get_args(Kind)) -> list[list[int]]:
    """The clusters of two or more among `count` photos that pairs of these kinds join; indexes, sorted."""
    joined = DisjointSet(range(count))
    for pair in pairs:
        if pair.kind in kinds:
            joined.merge(pair.first, pair.second)
    return sorted(sorted(cluster) for cluster in joined.subsets() if len(cluster) > 1)


class _Photos:
    """What is kept of each photo (`records`, one `_PHOTO` per path, on disk), and the comparison of two."""

    def __init__(self, paths: Sequence[Path], hashes: list[str], records: np.ndarray):
        self.paths, self.hashes, self.records = paths, hashes, records
        self.grey = lru_cache(256)(self._grey)
        self._backbone = Backbone()
        self._waiting: dict[int, list[tuple[int, np.ndarray]]] = {side: [] for side in SQUARES}

    def read(self, index: int) -> tuple[str, np.ndarray]:
        """Fill the photo's record; its SHA-256, "" when it cannot be read, and what the network is to see of it."""
        path, known = self.paths[index], self.hashes[index]
        try:
            file = unchanged(path, known) if known else io.BytesIO(path.read_bytes())
            image = decode(file, SIDE)
        except (OSError, BadPhoto):
            if known:
                raise
            return "", np.empty(0)
        self.hashes[index] = known or hashlib.sha256(file.getbuffer()).hexdigest()
        side = max((side for side in SQUARES if side <= min(image.size)), default=SQUARES[0])
        square = fit(image, replace(Geometry.for_size(side), version=2))  # by which the bounds above were measured
        image.thumbnail((SIDE, SIDE))
        record = self.records[index]
        record["hash"] = imagehash.phash(image).hash.ravel()
        colours = cv2.calcHist([np.asarray(image.convert("HSV"))], [0, 1, 2], None, COLOUR_BINS, [0, 256] * 3)
        record["colours"] = np.sqrt(colours / colours.sum())  # distances of roots are Hellinger's
        keypoints, descriptors = cv2.SIFT.create(FEATURES).detectAndCompute(np.asarray(image.convert("L")), None)
        record["features"] = count = min(len(keypoints), FEATURES)  # OpenCV keeps ties, so it may return more
        if count:
            record["points"][:count] = cv2.KeyPoint.convert(keypoints[:count])
            record["descriptors"][:count] = descriptors[:count]
        return self.hashes[index], square

    def look(self, index: int, square: np.ndarray) -> None:
        """Let the network see the photo, together with others of its size."""
        waiting = self._waiting[len(square)]
        waiting.append((index, square))
        if len(waiting) == SEEN_AT_ONCE:
            self._see(waiting)

    def look_at_the_rest(self) -> None:
        """Let the network see the photos that still wait for others."""
        for waiting in filter(None, self._waiting.values()):
            self._see(waiting)

    def _see(self, waiting: list[tuple[int, np.ndarray]]) -> None:
        indexes, squares = zip(*waiting, strict=True)
        self.records["seen"][list(indexes)] = self._backbone(np.stack(squares))
        waiting.clear()

    def _grey(self, index: int) -> np.ndarray:
        image = decode(unchanged(self.paths[index], self.hashes[index]), SIDE)
        image.thumbnail((SIDE, SIDE))
        return np.asarray(image.convert("L"))

    def descriptors(self, index: int) -> np.ndarray:
        """The SIFT descriptors at length 1; float32 `[features, 128]`."""
        record = self.records[index]
        return _unit(record["descriptors"][: record["features"]].astype(np.float32))

    def compare(self, candidate: "_Candidate") -> Pair | None:
        """The two photos as a pair, or None when they do not show the same."""
        ways = [self._aligned(candidate, mirrored) for mirrored in (False, True)[: 1 + candidate.near]]
        pair = max(filter(None, ways), key=lambda pair: pair.inliers, default=None)
        if pair is None and candidate.stands_out:
            distance = self._distance(candidate)
            pair = Pair(*candidate.indexes, "perhaps the same plate", 0, distance, np.nan, candidate.likeness)
        return pair

    def _aligned(self, candidate: "_Candidate", mirrored: bool) -> Pair | None:
        """The pair where one photo, or its mirror image, can be laid over the other."""
        enough = FEWER_INLIERS if candidate.near and candidate.likeness >= ALIKE else INLIERS
        a, b = (self.records[index] for index in candidate.indexes)
        above, below = (self.descriptors(index) for index in candidate.indexes)
        of, to = _matches(above[:, _MIRRORED] if mirrored else above, below)
        if len(of) < enough:
            return None
        affine, agree = cv2.estimateAffine2D(a["points"][of], b["points"][to], ransacReprojThreshold=REPROJECTION)
        if affine is None or (inliers := int(agree.sum())) < enough:
            return None
        above, below = (self.grey(index) for index in candidate.indexes)
        overlap = cv2.warpAffine(np.full_like(above, 255), affine, below.shape[::-1], flags=cv2.INTER_NEAREST)
        above = cv2.GaussianBlur(cv2.warpAffine(above, affine, below.shape[::-1]), (0, 0), BLUR)
        below = cv2.GaussianBlur(below, (0, 0), BLUR)
        hull = cv2.convexHull(b["points"][to[agree[:, 0] > 0]]).astype(np.int32)
        outline = cv2.fillConvexPoly(np.zeros_like(overlap), hull, 255)
        if outline.sum() < OUTLINE_SHARE * overlap.sum() or cv2.computeECC(above, below, outline) < OUTLINE_CORRELATION:
            return None
        correlation = cv2.computeECC(above, below, overlap)
        kind: Kind = "same scene"
        if inliers < INLIERS:
            kind = "perhaps the same plate"
        elif inliers >= AGREEING * len(of) and correlation >= OVERLAP_CORRELATION:
            kind = "same picture"
        return Pair(*candidate.indexes, kind, inliers, self._distance(candidate), correlation, candidate.likeness)

    def _distance(self, candidate: "_Candidate") -> int:
        first, second = (self.records["hash"][index] for index in candidate.indexes)
        return int((first != second).sum())


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Two photos worth comparing: whether they are `near` by what the network sees, and how clearly."""

    indexes: tuple[int, int]
    likeness: float
    near: bool
    stands_out: bool


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _matches(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowe's ratio test between unit descriptors `[n, 128]` and `[m, 128]`; rows of each, no row twice."""
    if min(len(first), len(second)) < 2:
        return np.empty(0, int), np.empty(0, int)
    cosine = first @ second.T
    rows, best = np.arange(len(first)), cosine.argmax(1)
    nearest = cosine[rows, best]
    cosine[rows, best] = -1
    passed = np.flatnonzero(1 - nearest < RATIO**2 * (1 - cosine.max(1)))  # squared distance is 2 - 2 cosine
    to, once = np.unique(best[passed], return_index=True)
    return passed[once], to


def _shortlist(photos: _Photos, indexes: np.ndarray) -> list[_Candidate]:
    """Pairs of the photos at `indexes` worth comparing."""
    if len(indexes) < 2:
        return []
    seen = photos.records["seen"][indexes]
    distance, other = _nearest(seen, min(RIVAL, max(RIVAL_AT_LEAST, len(seen) // RIVAL_SHARE)))
    rival = 1 - distance[:, -1] ** 2 / 2  # of unit vectors, the squared distance is 2 - 2 cosine
    near = {tuple(pair) for pair in _unordered(_listed(other[:, :NEAREST])).tolist()}
    others = [
        _neighbours(_vlad(photos, indexes), LOOKALIKES),
        _neighbours(photos.records["colours"][indexes].reshape(len(indexes), -1), LOOKALIKES),
        # of bits, the squared distance counts those that differ
        _neighbours(photos.records["hash"][indexes].astype(np.float32), HASH_LOOKALIKES, (HASH_BITS + 0.5) ** 0.5),
    ]
    candidates = []
    for first, second in sorted(near | {tuple(pair) for pair in _unordered(np.concatenate(others)).tolist()}):
        likeness = float(seen[first] @ seen[second])
        stands_out = likeness >= LIKENESS and likeness - max(rival[first], rival[second]) >= LEAD
        both = int(indexes[first]), int(indexes[second])
        candidates.append(_Candidate(both, likeness, (first, second) in near, bool(stands_out)))
    return candidates


def _neighbours(rows: np.ndarray, count: int, farthest: float = np.inf) -> np.ndarray:
    """Each row with its `count` nearest others up to this distance; int `[pairs, 2]`."""
    distance, other = _nearest(rows, count)
    return _listed(other)[distance.ravel() <= farthest]


def _nearest(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indexes of each row's `count` nearest others, both `[N, count]`, by blocks of bounded size."""
    return NearestNeighbors(n_neighbors=min(count, len(rows) - 1), algorithm="brute").fit(rows).kneighbors()


def _listed(others: np.ndarray) -> np.ndarray:
    """Each row's number beside each index in it; int `[pairs, 2]`."""
    return np.stack([np.repeat(np.arange(len(others)), others.shape[1]), others.ravel()], axis=1)


def _unordered(pairs: np.ndarray) -> np.ndarray:
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _vlad(photos: _Photos, indexes: np.ndarray) -> np.ndarray:
    """A unit vector per photo: its features' offsets from their visual words, summed per word, and reduced by PCA."""

    def features(index: int) -> np.ndarray:  # roots: RootSIFT, Arandjelović and Zisserman, CVPR 2012
        return _unit(np.sqrt(photos.descriptors(index)))

    def pooled(index: int) -> np.ndarray:
        own = features(index)
        nearest = (own @ words.T - (words**2).sum(1) / 2).argmax(1)
        member = np.eye(len(words), dtype=np.float32)[nearest]
        return _unit(member.T @ own - member.sum(0)[:, None] * words).ravel()

    rng = np.random.default_rng(0)
    sample = rng.permutation(indexes)[:SAMPLE]
    some = np.concatenate([rng.permutation(features(index))[:60] for index in sample])
    if len(some) < 2:  # featureless pictures only
        return np.zeros((len(indexes), 1), np.float32)
    # Random initial words: k-means++ prefers outliers, and finds fewer copies
    kmeans = MiniBatchKMeans(min(WORDS, len(some)), init="random", n_init=1, batch_size=4096, random_state=0)
    words = kmeans.fit(some).cluster_centers_
    learned = np.stack(list(in_threads(pooled, list(sample))))
    pca = PCA(min(COMPONENTS, *learned.shape), iterated_power=2, random_state=0).fit(learned)
    blocks = np.array_split(indexes, -(-len(indexes) // 256))
    return _unit(np.concatenate([pca.transform(np.stack(list(in_threads(pooled, list(block))))) for block in blocks]))
