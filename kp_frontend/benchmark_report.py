"""What every benchmark shows and writes beside its tables: which targets are met, and where its figures come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kp_frontend.replay import provenance


def show_targets(console: Any, targets: Mapping[str, bool]) -> None:
    """A line ``yes …`` or ``NO  …`` for each target (sentence → whether it is met) on rich's `console`."""
    for sentence, met in targets.items():
        console.print(f"[{'green' if met else 'red'}]{'yes' if met else 'NO '}[/] {sentence}", highlight=False)


def write_figures(file: Path, command: Sequence[str], figures: Mapping[str, Any]) -> None:
    """Write `figures` as JSON, with the command and the revision, versions and machine that they come from."""
    content = {
        "command": list(command), "revision": provenance.revision(), "versions": provenance.versions(),
        "machine": provenance.machine(), **figures,
    }
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
