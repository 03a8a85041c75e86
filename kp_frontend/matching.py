"""Which feature of one image is which of another: one candidate mask times one distance matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.features import Features, Matches
from kp_frontend.window_search import pairs_within


def match(
    query: Features,
    train: Features,
    *,
    mutual: bool = True,
    ratio: float | None = None,
    method: str = "mutual_nn",
    temperature: float = 0.1,
    threshold: float = 0.2,
    max_distance: float | None = None,
    window: tuple[float, np.ndarray] | None = None,
    epipolar: tuple[np.ndarray, float] | None = None,
    stereo_rows: tuple[float, float] | None = None,
) -> Matches:
    """Match `query` to `train`; the result is ordered by query index, each query at most once.

    mutual: keep a pair only if it is the best of both sides.
    ratio: keep a pair only if its distance is below `ratio` × that of the second best train candidate (Lowe).
    method: ``mutual_nn`` (nearest neighbour) or ``double_softmax`` (product of the softmaxes over rows and over
        columns of similarity / `temperature`, at least `threshold`; a bit string counts as a ±1 vector).
    max_distance: in the metric's unit, L2 of unit vectors (0 … 2) or bits.
    window: (radius in pixels, predicted positions of the train features in the query image, N_train×2).
    epipolar: (F 3×3 with query' F train = 0 in pixels, largest distance in pixels of query to its epipolar line).
    stereo_rows: (row tolerance in pixels, largest disparity); query is the left, train the right rectified image.

    Guides combine. Raises InputError where the metrics or descriptor sizes differ, or `method` is unknown.
    """
    if method not in METHODS:
        raise unknown_name("matching method", method, METHODS)
    if method == "double_softmax" and temperature < 0.03:
        raise InputError(f"temperature: expected at least 0.03 (float32 would underflow), got {temperature}")
    _check_comparable(query, train)
    if not len(query) or not len(train):
        return Matches.empty()
    guides = [
        *([_epipolar_guide(train, *epipolar)] if epipolar is not None else []),
        *([_row_guide(train, *stereo_rows)] if stereo_rows is not None else []),
    ]
    found = None
    if window is not None and method == "mutual_nn" and not guides:
        found = _nearest_in_window(query, train, *window, mutual)
    if found is None:
        how = _How(mutual, ratio is not None, temperature, threshold)
        found = _search(query, train, METHODS[method], window, guides, how)
    keep = found.keep & (found.cost < np.inf)
    distances = _distance(found.cost, query)
    if max_distance is not None:
        keep &= distances <= max_distance
    if ratio is not None:
        keep &= distances < ratio * _distance(found.second, query)
    return Matches(np.flatnonzero(keep), found.best[keep], distances[keep])


def _search(
    query: Features, train: Features, method: Callable[..., _Found], window: tuple[float, np.ndarray] | None,
    guides: list[Guide], how: _How,
) -> _Found:
    """Compare tile by tile, or all with all where there is no window."""
    tiles = _row_blocks(query) if window is None else _tiles(query.keypoints, *window)
    guides = guides if window is None else [_window_guide(train, *window), *guides]
    largest_dot = 1 if query.metric == "l2" else 8 * query.descriptors.shape[1]
    how = replace(how, temperature=how.temperature * largest_dot)
    return method(_blocks(query, train, tiles, guides), (len(query), len(train)), how)


def _nearest_in_window(
    query: Features, train: Features, radius: float, predicted: np.ndarray, mutual: bool
) -> _Found | None:
    """The same as `_search` with `_nearest`, pair by pair; None where too many pairs make that slower."""
    _check_predicted(train, predicted)
    few, price = PAIR_PRICES[query.metric]
    pairs = pairs_within(query.keypoints, radius, predicted, few * len(query))
    if pairs is None:
        return None
    i, j = pairs
    costs = price(query, train, i, j)
    cost, second = np.full((2, len(query)), np.inf, np.float32)
    least = np.full(len(train), np.inf, np.float32)
    best = np.full(len(query), len(train), np.int64)
    np.minimum.at(cost, i, costs)
    np.minimum.at(least, j, costs)
    first = costs == cost[i]
    np.minimum.at(best, i[first], j[first])
    others = j != best[i]
    np.minimum.at(second, i[others], costs[others])
    best[best == len(train)] = 0  # no candidate: the cost is infinite
    return _Found(best, cost, second, _mutual(best, cost, least) if mutual else np.ones(len(query), bool))


def _mutual(best: np.ndarray, cost: np.ndarray, least: np.ndarray) -> np.ndarray:
    """N bool: the query's best train feature has no cheaper query; of equal ones the first wins.

    Comparing with the column's least cost spares the slow argmin along columns.
    """
    rows = np.flatnonzero(cost <= least[best])
    keep = np.zeros(len(best), bool)
    keep[rows[np.unique(best[rows], return_index=True)[1]]] = True
    return keep


def _check_comparable(query: Features, train: Features) -> None:
    if query.metric != train.metric or query.descriptors.shape[1] != train.descriptors.shape[1]:
        raise InputError(
            f"cannot match {query.metric} descriptors of size {query.descriptors.shape[1]} with {train.metric} of size "
            f"{train.descriptors.shape[1]}; both images need the same extractor"
        )
    if len(query) and not query.descriptors.shape[1]:
        raise InputError("cannot match features without descriptors (gftt_lk has none); use an extractor such as orb")


Block = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns, and their cost: n×m float32, inf = no candidate
Guide = Callable[[np.ndarray, np.ndarray], np.ndarray]  # n×2 query keypoints, m columns → n×m bool, True = candidate


def _row_blocks(query: Features, rows: int = 128) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """All rows in blocks that stay in the cache; None: with every column."""
    for start in range(0, len(query), rows):
        yield np.arange(start, min(start + rows, len(query))), None


def _tiles(
    points: np.ndarray, radius: float, predicted: np.ndarray, count: int = 16
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Squares of the image: rows of the query points in one, columns of the train features near it.

    So the work grows with the windows, not with the image. Squares are at least as wide as a window, and few.
    """
    extent = np.ptp(points, axis=0)
    side = max(2 * radius, float(np.sqrt(extent.prod() / count)), 1.0)
    square = ((points - points.min(axis=0)) // side).astype(np.int64) @ [1, 1 << 20]
    order = np.argsort(square, kind="stable")
    x, y = predicted.astype(np.float32).T
    for rows in np.split(order, np.flatnonzero(np.diff(square[order])) + 1):
        (left, top), (right, bottom) = points[rows].min(axis=0) - radius, points[rows].max(axis=0) + radius
        columns = np.flatnonzero((x >= left) & (x <= right) & (y >= top) & (y <= bottom))
        if len(columns):
            yield rows, columns


def _blocks(
    query: Features, train: Features, tiles: Iterable[tuple[np.ndarray, np.ndarray | None]], guides: list[Guide]
) -> Iterator[Block]:
    """Cost of each tile's pairs; smaller is better: minus the dot product, where a bit string is a ±1 vector."""
    price = PRICES[query.metric](query, train)
    every = np.arange(len(train))
    for rows, columns in tiles:
        cost = price(rows, columns)
        columns = every if columns is None else columns
        for guide in guides:
            np.putmask(cost, ~guide(query.keypoints[rows], columns), np.inf)
        yield rows, columns, cost


Price = Callable[[np.ndarray, "np.ndarray | None"], np.ndarray]  # rows, columns (None: all) → n×m float32


def _products(query: np.ndarray, train: np.ndarray) -> Price:
    return lambda rows, columns: -query[rows] @ (train if columns is None else train[columns]).T


def _dot_products(query: Features, train: Features) -> Price:
    return _products(query.descriptors, train.descriptors)


def _bit_counts(query: Features, train: Features) -> Price:
    size = 8 * query.descriptors.shape[1]
    if not hasattr(np, "bitwise_count"):  # numpy 1: a matrix product of ±1 vectors is exact, and next fastest
        return _products(*(np.unpackbits(f.descriptors, axis=1).astype(np.float32) * 2 - 1 for f in (query, train)))
    ours, theirs = _words(query.descriptors), _words(train.descriptors)

    def price(rows: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
        others = theirs if columns is None else theirs[:, columns]
        bits = np.zeros((len(rows), others.shape[1]), np.uint16)
        for a, b in zip(ours, others):
            bits += np.bitwise_count(a[rows, None] ^ b)
        return np.multiply(bits, np.float32(2)) - np.float32(size)

    return price


def _words(descriptors: np.ndarray) -> np.ndarray:
    """Words×N uint64 of N×D bytes."""
    rest = -descriptors.shape[1] % 8
    padded = np.pad(descriptors, ((0, 0), (0, rest))) if rest else np.ascontiguousarray(descriptors)
    return np.ascontiguousarray(padded.view(np.uint64).T)


PRICES: dict[str, Callable[[Features, Features], Price]] = {"l2": _dot_products, "hamming": _bit_counts}


def _pair_bit_counts(query: Features, train: Features, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    if not hasattr(np, "bitwise_count"):  # numpy 1
        bits = np.unpackbits(query.descriptors[i] ^ train.descriptors[j], axis=1).sum(axis=1, dtype=np.float32)
    else:
        words = zip(_words(query.descriptors), _words(train.descriptors))
        bits = sum((np.bitwise_count(a[i] ^ b[j]) for a, b in words), np.zeros(len(i), np.uint16))
    return bits * np.float32(2) - np.float32(8 * query.descriptors.shape[1])


def _pair_dot_products(query: Features, train: Features, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    ours, theirs = query.descriptors, train.descriptors
    size = ours.shape[1]
    step = max(_BUFFER // size, 1)  # pieces stay in the cache, and so do the two buffers
    a, b = np.empty((2, min(step, len(i)), size), np.float32)
    costs = np.empty(len(i), np.float32)
    for begin in range(0, len(i), step):
        piece = slice(begin, begin + step)
        count = len(i[piece])
        ours.take(i[piece], axis=0, out=a[:count], mode="clip")
        theirs.take(j[piece], axis=0, out=b[:count], mode="clip")
        np.einsum("nd,nd->n", a[:count], b[:count], out=costs[piece])
    return np.negative(costs, out=costs)


_BUFFER = 1 << 16  # floats
# Pairs a query beyond which tiles are faster, and the cost of each pair (i, j). 1000 × 1400, ms against tiles': ORB
# with 6 pairs a query 0.6 and 2.2; vectors with 12 pairs 1.0 and 2.3 (64 numbers), 2.1 and 3.7 (256).
PAIR_PRICES: dict[str, tuple[int, Callable[[Features, Features, np.ndarray, np.ndarray], np.ndarray]]] = {
    "l2": (25, _pair_dot_products), "hamming": (60, _pair_bit_counts),
}


def _distance(cost: np.ndarray, features: Features) -> np.ndarray:
    """Cost in the metric's own unit."""
    if features.metric == "l2":
        return np.sqrt(np.maximum(0, 2 + 2 * cost))
    return (8 * features.descriptors.shape[1] + cost) / 2


@dataclass(frozen=True)
class _How:
    """Options of the methods; second: whether the second best cost is needed."""

    mutual: bool
    second: bool
    temperature: float
    threshold: float


@dataclass(frozen=True, eq=False)
class _Found:
    """For each query: the best train feature, its cost, the second best cost, and whether the method keeps the pair."""

    best: np.ndarray
    cost: np.ndarray
    second: np.ndarray
    keep: np.ndarray


def _nearest(blocks: Iterable[Block], shape: tuple[int, int], how: _How) -> _Found:
    best, (cost, second) = np.zeros(shape[0], np.int64), np.full((2, shape[0]), np.inf, np.float32)
    least = np.full(shape[1], np.inf, np.float32)
    for rows, columns, block in blocks:
        lines = np.arange(len(rows))
        nearest = block.argmin(axis=1)
        least[columns] = np.minimum(least[columns], block.min(axis=0))
        best[rows], cost[rows] = columns[nearest], block[lines, nearest]
        if how.second:
            block[lines, nearest] = np.inf
            second[rows] = block.min(axis=1)
    return _Found(best, cost, second, _mutual(best, cost, least) if how.mutual else np.ones(shape[0], bool))


def _double_softmax(blocks: Iterable[Block], shape: tuple[int, int], how: _How) -> _Found:
    cost = np.full(shape, np.inf, np.float32)
    for rows, columns, block in blocks:
        cost[np.ix_(rows, columns)] = block
    # one shift for all, so that one exponential serves rows and columns: float32 holds it for temperatures ≥ 0.03
    likelihood = np.exp((min(cost.min(), 0) - cost) / np.float32(how.temperature))
    tiny = np.finfo(np.float32).tiny
    by_row = np.maximum(likelihood.sum(1, keepdims=True), tiny)
    by_column = np.maximum(likelihood.sum(0, keepdims=True), tiny)
    np.square(likelihood, out=likelihood)
    likelihood /= by_row
    likelihood /= by_column
    whole = (np.arange(shape[0]), np.arange(shape[1]), -likelihood)
    found = _nearest([whole], shape, how)
    lines = np.arange(shape[0])
    chosen = cost[lines, found.best]
    cost[lines, found.best] = np.inf
    return _Found(found.best, chosen, cost.min(axis=1), found.keep & (-found.cost >= how.threshold))


METHODS = {"mutual_nn": _nearest, "double_softmax": _double_softmax}


def _check_predicted(train: Features, predicted: np.ndarray) -> None:
    if predicted.shape != train.keypoints.shape:
        raise ValueError(f"window: expected {train.keypoints.shape} predicted positions, got {predicted.shape}")


def _window_guide(train: Features, radius: float, predicted: np.ndarray) -> Guide:
    _check_predicted(train, predicted)
    x, y = predicted.astype(np.float32).T

    def candidates(points: np.ndarray, columns: np.ndarray) -> np.ndarray:
        squares, down = points[:, :1] - x[columns], points[:, 1:] - y[columns]
        squares *= squares
        down *= down
        squares += down
        return squares <= np.float32(radius * radius)

    return candidates


def _epipolar_guide(train: Features, fundamental: np.ndarray, tolerance: float) -> Guide:
    lines = np.column_stack([train.keypoints, np.ones(len(train))]) @ np.asarray(fundamental, np.float64).T
    lines /= np.maximum(np.linalg.norm(lines[:, :2], axis=1, keepdims=True), 1e-12)
    lines = lines.T.astype(np.float32)
    return lambda points, columns: np.abs(points @ lines[:2, columns] + lines[2, columns]) <= tolerance


def _row_guide(train: Features, tolerance: float, max_disparity: float) -> Guide:
    x, y = train.keypoints.T

    def candidates(points: np.ndarray, columns: np.ndarray) -> np.ndarray:
        disparity = points[:, :1] - x[columns]
        return (np.abs(points[:, 1:] - y[columns]) <= tolerance) & (disparity >= 0) & (disparity <= max_disparity)

    return candidates
