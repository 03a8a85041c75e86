"""What every test wants: a cache of its own, so that none finds what another run left, or leaves anything."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KP_FRONTEND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
