"""The sparse profile: what ``kp_frontend.decoding`` does after a network, as part of its graph.

No size is baked in: shapes are read in the graph, and its outputs have K rows at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kp_frontend.decoding import DECODERS, CellsParameters, FullParameters, find_decoder
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.model_file import ModelMetadata
from kp_frontend.sparse import check_top_k
from kp_training.geometry.sampling import sample

_COARSE = 4  # stride from which a map is small enough to be turned round


def sparse_metadata(metadata: ModelMetadata, top_k: int) -> ModelMetadata:
    """Metadata of the sparse file of a dense one; InputError for a number of points that no graph can give."""
    check_top_k(top_k)
    return replace(metadata, profile="sparse", top_k=top_k)


def sparse_module(dense: nn.Module, metadata: ModelMetadata, top_k: int) -> nn.Module:
    """`dense` (deployed, in evaluation mode) with its decoder behind it; outputs: ``kp_frontend.sparse.model_outputs``.

    metadata: of the dense profile.  Of decoder ``points`` it is `dense` itself, for inputs of `top_k` points.
    Raises InputError for a decoder that no graph has, or a number of points that no graph can give.
    """
    check_top_k(top_k)
    if metadata.decoder not in _MODULES:
        raise unknown_name("decoder for a sparse file", metadata.decoder, _MODULES)
    _, parameters = find_decoder(metadata, {})
    if getattr(parameters, "threshold", 0) < 0:
        raise InputError(f"threshold is {parameters.threshold:g}: in a sparse file score 0 means no point, so it must "
                         "be at least 0")
    return _MODULES[metadata.decoder](dense, metadata, parameters, top_k)


class _Sparse(nn.Module):
    """Image 1×C×H×W → keypoints 1×K×2, scores 1×K (0 = none, best first), descriptors 1×K×D of unit length.

    Each decoder has its own ``detect`` (maps → keypoints, scores) and ``describe`` (maps, keypoints → descriptors).
    """

    def __init__(self, dense: nn.Module, metadata: ModelMetadata, parameters: Any, top_k: int) -> None:
        super().__init__()
        self.dense, self.parameters, self.top_k = dense, parameters, top_k
        self.stride, self.descriptor_size = metadata.stride, metadata.descriptor_size
        self.names = DECODERS[metadata.decoder].outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = dict(zip(self.names, self.dense(image)))
        keypoints, scores = self.detect(**maps)
        descriptors = F.normalize(self.describe(maps, keypoints), dim=-1)
        # In the file, too, the shapes are fixed.
        shapes = (1, self.top_k, 2), (1, self.top_k), (1, self.top_k, self.descriptor_size)
        return tuple(values.reshape(shape) for values, shape in zip((keypoints, scores, descriptors), shapes))

    def at_pixels(self, maps: Tensor, points: Tensor) -> Tensor:
        """1×K×C: bilinear samples of 1×C×h×w `maps` at 1×K×2 pixels."""
        if self.stride < _COARSE:
            return sample(maps, points, self.stride)
        return _at_cells(maps, (points - (self.stride - 1) / 2) / self.stride)


class _SparseFull(_Sparse):
    """Decoder ``full``; see ``decoding.FullParameters``."""

    parameters: FullParameters

    def detect(self, scores: Tensor, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        radius, border = self.parameters.nms_radius, self.parameters.border
        peak = scores > self.parameters.threshold
        if border:
            peak = peak & _inner(scores, border)
        if radius:
            rows = F.max_pool2d(scores, (1, 2 * radius + 1), 1, (0, radius))
            peak = peak & (scores == F.max_pool2d(rows, (2 * radius + 1, 1), 1, (radius, 0)))
        peaks = torch.where(peak, scores, 0.0)
        values, pixels = _best(peaks, self.top_k, radius + 1)
        return _refined(scores, pixels, self.parameters.refine_radius), values

    def describe(self, maps: dict[str, Tensor], keypoints: Tensor) -> Tensor:
        return self.at_pixels(maps["descriptors"], keypoints)


def _inner(scores: Tensor, border: int) -> Tensor:
    """H×W bool: not within `border` of the edge."""
    (height, width), device = scores.shape[-2:], scores.device
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    return (y >= border) & (y < height - border) & (x >= border) & (x < width - border)


def _best(peaks: Tensor, count: int, block: int = 1) -> tuple[Tensor, Tensor]:
    """The `count` largest values of 1×1×H×W ≥ 0, best first, and their places: 1×K, 1×K×2 int64 (x, y).

    block: pixels; no two values > 0 lie in one square of so many, so the best are sought among its maxima, which are
    fewer.  Zeros stand for what a small map lacks.
    """
    height, width = peaks.shape[-2:]
    coarse = F.max_pool2d(peaks, block, block, ceil_mode=True) if block > 1 else peaks
    rows, columns = coarse.shape[-2:]
    lack = torch.zeros(1, count, dtype=peaks.dtype, device=peaks.device)
    values, index = torch.cat([coarse.flatten(1), lack], 1).topk(count)
    index = index.clamp(max=rows * columns - 1)
    x, y = index % columns, index // columns
    if block > 1:
        steps = torch.arange(block * block, device=peaks.device)
        x = (x[..., None] * block + steps % block).clamp(max=width - 1)
        y = (y[..., None] * block + steps // block).clamp(max=height - 1)
        inside = peaks.flatten(1).gather(1, (y * width + x).flatten(1)).reshape(1, count, block * block)
        place = inside.argmax(-1, keepdim=True)
        x, y = x.gather(-1, place)[..., 0], y.gather(-1, place)[..., 0]
    return values, torch.stack([x, y], -1)


def _refined(scores: Tensor, pixels: Tensor, radius: int) -> Tensor:
    """1×K×2 float32: ``kp_frontend.decoding.soft_argmax`` at 1×K×2 int64."""
    points = pixels.float()
    if not radius:
        return points
    (height, width), steps = scores.shape[-2:], torch.arange(-radius, radius + 1, device=scores.device)
    across, down = steps.repeat(len(steps)), steps.repeat_interleave(len(steps))
    x, y = pixels[..., :1] + across, pixels[..., 1:] + down
    beside, above = x.clamp(min=0).clamp(max=width - 1), y.clamp(min=0).clamp(max=height - 1)
    values = scores.flatten(1).gather(1, (above * width + beside).flatten(1)).reshape(x.shape)
    values = torch.where((beside == x) & (above == y), values, 0.0)
    shift = torch.stack([(values * across.float()).sum(-1), (values * down.float()).sum(-1)], -1)
    return points + shift / values.sum(-1, keepdim=True).clamp(min=1e-20)


def _at_cells(maps: Tensor, points: Tensor) -> Tensor:
    """1×K×C: bilinear samples of 1×C×h×w `maps` at 1×K×2 (x, y) in cells, clamped at the edge.

    By rows of the map turned round, where a descriptor is in one piece: GridSample takes four times as long on a CPU.
    """
    height, width = maps.shape[-2:]
    x, y = points[0, :, 0].clamp(min=0).clamp(max=width - 1), points[0, :, 1].clamp(min=0).clamp(max=height - 1)
    left, top = x.floor(), y.floor()
    across, down = (x - left)[:, None], (y - top)[:, None]
    left, top = left.long(), top.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    rows = maps[0].flatten(1).t()
    upper = rows[top * width + left] * (1 - across) + rows[top * width + right] * across
    lower = rows[bottom * width + left] * (1 - across) + rows[bottom * width + right] * across
    return (upper * (1 - down) + lower * down)[None]


class _SparseCells(_Sparse):
    """Decoder ``cells``; see ``decoding.CellsParameters``."""

    parameters: CellsParameters

    def detect(self, scores: Tensor, offsets: Tensor, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        cell, half = self.parameters.cell, (self.parameters.cell - 1) / 2
        (rows, columns), device = scores.shape[-2:], scores.device
        x = torch.arange(columns, device=device).float()[None, None] * cell + half
        y = torch.arange(rows, device=device).float()[None, :, None] * cell + half
        reach = self.parameters.cross_ratio * half
        x = (x + reach * offsets[:, 0]).clamp(min=0).clamp(max=columns * cell - 1)
        y = (y + reach * offsets[:, 1]).clamp(min=0).clamp(max=rows * cell - 1)
        points = torch.stack([x, y], 1)
        scores = torch.where(scores > self.parameters.threshold, scores, 0.0)
        if self.parameters.nms_radius:
            scores = self._spread(scores, points)
        values, cells = _best(scores, self.top_k)
        index = (cells[..., 1] * columns + cells[..., 0])[:, None].expand(-1, 2, -1)
        return points.flatten(2).gather(2, index).transpose(1, 2), values

    def _spread(self, scores: Tensor, points: Tensor) -> Tensor:
        """Scores, 0 where a better point lies within `nms_radius`; only so many cells around can hold one."""
        radius, cell = self.parameters.nms_radius, self.parameters.cell
        around = int((radius + 1 + self.parameters.cross_ratio * (cell - 1)) // cell)
        own = torch.cat([scores, points.round()], 1)
        padded = F.pad(own, (around,) * 4)
        span = range(2 * around + 1)
        others = torch.stack([
            padded[:, :, dy : dy - 2 * around or None, dx : dx - 2 * around or None] for dy in span for dx in span
        ])
        near = (others[:, :, 1:] - own[None, :, 1:]).abs().amax(2, keepdim=True) <= radius
        return torch.where((near & (others[:, :, :1] > scores)).any(0), 0.0, scores)

    def describe(self, maps: dict[str, Tensor], keypoints: Tensor) -> Tensor:
        descriptors, cell = maps["descriptors"], self.parameters.cell
        if not self.parameters.align_corners:
            return self.at_pixels(descriptors, keypoints)
        (height, width), (rows, columns) = descriptors.shape[-2:], maps["scores"].shape[-2:]
        x, y = keypoints.unbind(-1)
        aligned = x * ((width - 1) / (columns * cell - 1)), y * ((height - 1) / (rows * cell - 1))
        return _at_cells(descriptors, torch.stack(aligned, -1))


# Decoder → (dense module, its metadata, the decoder's parameters, K) → the sparse module.
_MODULES: dict[str, Callable[[nn.Module, ModelMetadata, Any, int], nn.Module]] = {
    "full": _SparseFull, "cells": _SparseCells, "points": lambda dense, *_: dense,
}
