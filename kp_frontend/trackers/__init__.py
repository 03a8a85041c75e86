"""Features that keep their identity from frame to frame: trackers by what a features spec asks for."""

from __future__ import annotations

from kp_frontend.extractors import load_extractor
from kp_frontend.extractors.options import parse_spec
from kp_frontend.settings import read_settings
from kp_frontend.trackers.base import Tracker, TrackerConfig
from kp_frontend.trackers.descriptors import DescriptorTracker
from kp_frontend.trackers.optical_flow import FLOW, FlowOptions, FlowTracker

__all__ = ["DescriptorTracker", "FlowTracker", "Tracker", "TrackerConfig", "load_tracker"]


def load_tracker(
    spec: str, top_k: int = 1000, backend: str = "auto", config: TrackerConfig | None = None, threads: int = 0
) -> Tracker:
    """The tracker that a features spec asks for; InputError where the spec is wrong.

    ``gftt_lk`` is optical flow and takes TrackerConfig's fields as options (``gftt_lk:flow_window=31``) and top_k;
    anything else is an extractor whose features are matched by descriptor.  threads: see `load_extractor`.
    """
    name, options = parse_spec(spec)
    if name != FLOW:
        return DescriptorTracker(load_extractor(spec, top_k=top_k, backend=backend, threads=threads), config)
    chosen = read_settings(FLOW, FlowOptions, {"top_k": top_k, **vars(config or TrackerConfig()), **options})
    values = vars(chosen).copy()
    return FlowTracker(top_k=values.pop("top_k"), config=TrackerConfig(**values))
