"""What the homography benchmark found: a table for each preset, and everything as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kp_frontend.replay.summary import without_nan
from kp_frontend.terminal import table_console
from kp_training.evaluation.homography import Rows
from kp_training.evaluation.protocols import Setting
from kp_training.evaluation.published import Table as Published
from kp_training.evaluation.published import notes, published
from kp_training.evaluation.summary import MEAN, Estimate, Summary, differences, summarize

if TYPE_CHECKING:
    from rich.table import Table

_MOST_GROUPS = 12  # more sequences than this are in the JSON only
_UNITS = "LE: pixels; matches, points: counts; all else: shares"
_NOISE = "±: standard error, pairs of one sequence or photograph taken together"
_DIFFERENCE = "difference: pair by pair, against the first features"


@dataclass(frozen=True)
class Outcome:
    """One preset's rows by features, and what they come to; differences lacks the first features."""

    setting: Setting
    rows: Mapping[str, Rows]
    summaries: Mapping[str, Summary]
    differences: Mapping[str, Summary]
    published: Sequence[Published]

    @property
    def groups(self) -> list[str]:
        """Names of the groups, ``mean`` last."""
        return list(next(iter(self.summaries.values())))


def conclude(setting: Setting, rows: Mapping[str, Rows]) -> Outcome:
    """Sum up one preset's rows (features → one row a pair, the same pairs for each)."""
    baseline, *others = rows
    pairs: dict[str, int] = {}
    for row in rows[baseline]:
        pairs[row["sequence"]] = pairs.get(row["sequence"], 0) + 1
    return Outcome(
        setting, rows, {spec: summarize(entry) for spec, entry in rows.items()},
        {spec: differences(rows[spec], rows[baseline]) for spec in others}, published(setting, pairs),
    )


def labels(features: Sequence[str]) -> dict[str, str]:
    """Features → a short name: the file's, or all of it where two would be called the same."""
    short = {spec: Path(spec).name for spec in features}
    names = list(short.values())
    return {spec: name if names.count(name) == 1 else spec for spec, name in short.items()}


def print_table(outcome: Outcome, data: str) -> None:
    """The table of one preset, on the terminal or, into a file or pipe, as wide as it needs to be."""
    from rich.table import Table

    columns = outcome.setting.protocol.columns
    table = Table("sequence", "features")
    for column in columns:
        table.add_column(column, justify="right")
    groups = outcome.groups
    for group in groups if len(groups) <= _MOST_GROUPS else [name for name in groups if name in _wholes(outcome)]:
        for row in _group_rows(outcome, group):
            table.add_row(*row)
        table.add_section()
    lines = (_UNITS, _NOISE, *([_DIFFERENCE] if outcome.differences else []), *notes(outcome.published))
    show_table(f"homography, {outcome.setting}; {data}", table, lines, width=180)


def show_table(title: str, table: Table, lines: Iterable[str], width: int) -> None:
    """A table under its title, and `lines` that explain it; `width`: in characters, where there is no terminal."""
    console = table_console(width)
    console.print(f"\n{title}", highlight=False, soft_wrap=True, style="bold")
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, style="dim")


def _wholes(outcome: Outcome) -> set[str]:
    """Groups of more than one sequence."""
    return set(outcome.groups) - {row["sequence"] for rows in outcome.rows.values() for row in rows}


def _group_rows(outcome: Outcome, group: str) -> Iterator[list[str]]:
    columns, names = outcome.setting.protocol.columns, labels(list(outcome.summaries))
    wholes = _wholes(outcome)
    for spec, summary in outcome.summaries.items():
        yield [group, names[spec], *(number(summary[group][column][0]) for column in columns)]
        if group in wholes:
            yield ["", "  ±", *(number(summary[group][column][1]) for column in columns)]
    if group == MEAN:
        baseline = names[next(iter(outcome.summaries))]
        for spec, summary in outcome.differences.items():
            yield ["difference", f"{names[spec]} − {baseline}",
                   *(number(summary[group][column][0], "+") for column in columns)]
            yield ["", "  ±", *(number(summary[group][column][1]) for column in columns)]
    for table in outcome.published:
        for name, figures in table.groups.get(group, {}).items():
            known = dict(zip(table.columns, figures))
            yield [group, f"published: {name}", *(number(known.get(column, math.nan)) for column in columns)]


def number(value: float, sign: str = "") -> str:
    """As tables show it; nothing to tell is –."""
    if not math.isfinite(value):
        return "–"
    return f"{value:{sign}.0f}" if abs(value) >= 20 else f"{value:{sign}.3f}"


def to_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Settings, rows, means, standard errors, differences and published figures, each by preset."""
    by_preset = {outcome.setting.preset: outcome for outcome in outcomes}
    return without_nan({
        "settings": {preset: {"size": str(outcome.setting.size), "top_k": outcome.setting.top_k,
                              "changed": outcome.setting.changed} for preset, outcome in by_preset.items()},
        "means": {preset: _parts(outcome.summaries, 0) for preset, outcome in by_preset.items()},
        "standard_errors": {preset: _parts(outcome.summaries, 1) for preset, outcome in by_preset.items()},
        "differences": {preset: {"baseline": next(iter(outcome.rows)), "means": _parts(outcome.differences, 0),
                                 "standard_errors": _parts(outcome.differences, 1)}
                        for preset, outcome in by_preset.items()},
        "published": {preset: [_published(table) for table in outcome.published]
                      for preset, outcome in by_preset.items()},
        "pairs": {preset: outcome.rows for preset, outcome in by_preset.items()},
    })


def _parts(summaries: Mapping[str, Mapping[str, Mapping[str, Estimate]]], part: int) -> dict[str, Any]:
    return {spec: {group: {key: entry[part] for key, entry in metrics.items()} for group, metrics in summary.items()}
            for spec, summary in summaries.items()}


def _published(table: Published) -> dict[str, Any]:
    return {"source": table.source, "note": table.note, "figures": {
        group: {name: dict(zip(table.columns, figures)) for name, figures in rows.items()}
        for group, rows in table.groups.items()}}
