"""Public weight files: their names for tensors put in place of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kp_frontend.errors import InputError


def rename_published(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], prefixes: Mapping[str, str], layout: str,
    unused: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The tensors of a public file under our names.

    own: our network's state dict.  prefixes: what our names begin with → what theirs do; the rest of a name is the
    same.  layout: what the file should be, for the message.  unused: beginnings of their names that we have no use for.
    Counts of batches (``num_batches_tracked``), which old files lack, stay ours there.
    Raises InputError where a tensor is missing, foreign or of another shape.
    """
    theirs = {name: _renamed(name, prefixes) for name in own}
    wrong = {
        "missing": [name for name in theirs.values()
                    if name not in state and not name.endswith("num_batches_tracked")],
        "foreign": [name for name in state.keys() - theirs.values() if not name.startswith(unused)],
        "of another shape": [theirs[name] for name, value in own.items()
                             if theirs[name] in state and state[theirs[name]].shape != value.shape],
    }
    if any(wrong.values()):
        said = "; ".join(f"{len(names)} {kind} (as {min(names)})" for kind, names in wrong.items() if names)
        raise InputError(f"the weights are not those of {layout}: {said}; give the file that its authors published, "
                         "or a checkpoint of ours")
    return {name: state.get(theirs[name], value) for name, value in own.items()}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    ours = max((prefix for prefix in prefixes if name.startswith(f"{prefix}.")), key=len)
    return prefixes[ours] + name.removeprefix(ours)
