"""Figures that the papers print for HPatches, to show beside ours where preset, size, points and data are the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kp_training.evaluation.protocols import D2NET_LEFT_OUT, Setting
from kp_training.evaluation.sequences import FULL, Size
from kp_training.evaluation.summary import MEAN

_ILLUMINATION = """
    ajuntament autannes bologna books boutique bridger brooklyn castle chestnuts contruction crownday crownnight
    dc dome duda fenis fog fruits gonnenberg greenhouse greentea indiana kions ktirio kurhaus leuven lionday
    lionnight londonbridge melon miniature nescafe nijmegen nuts objects parking partyfood pencils pinard pool
    porta resort salon santuario school ski smurf steps table tools toy troulos veggies village whitebuilding
    yellowtent zion
"""
_VIEWPOINT = """
    abstract adam apprentices artisans astronautis azzola bark bees beyus bip bird birdwoman blueprint boat bricks
    busstop calder cartooncity charing churchill circus coffeehouse colors courses dirtywall dogman eastsouth
    feast fest gardens grace graffiti home laptop london machines man maskedman pomegranate posters samples
    soldiers strand sunseason tabletop talent tempera there underground vitro wall wapping war weapons woman
    wormhole wounded yard yuri
"""
HPATCHES = frozenset({f"i_{name}" for name in _ILLUMINATION.split()} | {f"v_{name}" for name in _VIEWPOINT.split()})
"""The 116 sequences of hpatches-sequences-release."""
PAIRS_A_SEQUENCE = 5


@dataclass(frozen=True)
class Table:
    """Printed figures of one protocol at one size and number of points.

    rows: name → figures, in the order of `columns`; group → such rows.  note: what a reader must know.
    """

    source: str
    preset: str
    size: Size
    top_k: int
    columns: tuple[str, ...]
    groups: dict[str, dict[str, tuple[float, ...]]]
    note: str = ""


_KP2D = ("Rep", "LE", "Cor-1", "Cor-3", "Cor-5", "M.Score")
_RESIDUAL = ("Cor-1", "Cor-3", "Cor-5", "M.Score")
_PRP = ("Rep@3", "Rep@5", "HAcc@3", "HAcc@5", "HAUC@3", "HAUC@5", "MMA@3", "MMA@5", "MS")
_PRP_NOTE = "SuperPoint's rows are the PrP authors' own training; the repeatability their code gives is in doubt"
_SEDM_NOTE = "SEDM's rows: points above a threshold, not the best 8192"

TABLES = (
    Table("KP2D", "kp2d", Size(320, 240), 300, _KP2D, {MEAN: {
        "KP2D V0": (0.633, 1.044, 0.503, 0.796, 0.868, 0.491),
        "KP2D V1": (0.689, 0.935, 0.491, 0.805, 0.874, 0.537),
        "KP2D V2": (0.686, 0.918, 0.579, 0.866, 0.916, 0.544),
        "KP2D V3": (0.685, 0.885, 0.602, 0.836, 0.886, 0.520),
        "KP2D V4": (0.686, 0.890, 0.591, 0.867, 0.912, 0.544),
    }}),
    Table("KP2D", "kp2d", Size(640, 480), 1000, _KP2D, {MEAN: {
        "KP2D V4": (0.684, 0.970, 0.564, 0.851, 0.907, 0.510),
    }}),
    Table("KP2D", "kp2d", Size(320, 240), 300, _RESIDUAL, {MEAN: {
        "SIFT (KP2D)": (0.622, 0.845, 0.878, 0.304),
    }}),
    Table("Residual", "kp2d", Size(320, 240), 300, _RESIDUAL, {MEAN: {
        "ORB (Residual)": (0.112, 0.369, 0.474, 0.206),
        "SIFT (Residual)": (0.583, 0.841, 0.884, 0.268),
        "SURF (Residual)": (0.397, 0.702, 0.762, 0.255),
        "SuperPoint (Residual)": (0.491, 0.833, 0.893, 0.318),
        "Residual, SIFT": (0.498, 0.868, 0.905, 0.400),
        "Residual, SURF": (0.492, 0.821, 0.901, 0.401),
    }}),
    Table("Residual", "kp2d", Size(640, 480), 1000, _RESIDUAL, {MEAN: {
        "SIFT (Residual)": (0.590, 0.867, 0.914, 0.289),
        "SuperPoint (Residual)": (0.509, 0.834, 0.900, 0.281),
        "Residual, SIFT": (0.547, 0.859, 0.933, 0.407),
        "Residual, SURF": (0.531, 0.821, 0.917, 0.401),
    }}),
    Table("PrP", "silk", Size(short=480), 1000, _PRP, {MEAN: {
        "SuperPoint (PrP)": (0.58, 0.67, 0.81, 0.87, 0.55, 0.67, 0.68, 0.73, 0.52),
        "Hyb": (0.58, 0.70, 0.79, 0.87, 0.51, 0.64, 0.68, 0.75, 0.55),
        "SuperPoint-PrP": (0.53, 0.67, 0.75, 0.84, 0.45, 0.60, 0.65, 0.73, 0.51),
    }}, _PRP_NOTE),
    Table("PrP", "silk", Size(short=480), 10000, _PRP, {MEAN: {
        "SiLK": (0.77, 0.85, 0.84, 0.90, 0.65, 0.74, 0.66, 0.67, 0.38),
        "SiLK-PrP": (0.72, 0.80, 0.75, 0.81, 0.54, 0.64, 0.62, 0.63, 0.31),
        "Aug": (0.74, 0.82, 0.78, 0.85, 0.56, 0.67, 0.60, 0.61, 0.32),
    }}, _PRP_NOTE),
    Table("PoSFeat", "d2net", FULL, 8192, ("MMAscore",), {
        MEAN: {"PoSFeat": (0.775,), "DISK": (0.763,), "CAPS + SIFT": (0.699,)},
        "illumination": {"PoSFeat": (0.826,), "DISK": (0.813,), "CAPS + SIFT": (0.764,)},
        "viewpoint": {"PoSFeat": (0.728,), "DISK": (0.716,), "CAPS + SIFT": (0.639,)},
    }),
    Table("SEDM", "d2net", FULL, 8192, ("MMA@1", "MMA@2"), {
        MEAN: {"SEDM": (0.374, 0.564), "SuperPoint (SEDM)": (0.352, 0.567), "SIFT (SEDM)": (0.346,)},
        "illumination": {"SEDM": (0.453, 0.623), "SuperPoint (SEDM)": (0.408, 0.606), "SIFT (SEDM)": (0.365,)},
        "viewpoint": {"SEDM": (0.301, 0.510), "SuperPoint (SEDM)": (0.301, 0.531), "SIFT (SEDM)": (0.328,)},
    }, _SEDM_NOTE),
)


def published(setting: Setting, pairs: dict[str, int]) -> list[Table]:
    """The tables to show beside figures under `setting`; none where size, points or data differ.

    pairs: name of each sequence that was scored → how many pairs it has.
    """
    expected = HPATCHES - (D2NET_LEFT_OUT if setting.preset == "d2net" else frozenset())
    if pairs != dict.fromkeys(expected, PAIRS_A_SEQUENCE):
        return []
    return [table for table in TABLES
            if (table.preset, table.size, table.top_k) == (setting.preset, setting.size, setting.top_k)]


def notes(tables: Iterable[Table]) -> list[str]:
    """What a reader must know of these tables."""
    return list(dict.fromkeys(table.note for table in tables if table.note))
