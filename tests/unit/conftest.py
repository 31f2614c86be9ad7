# SPDX-License-Identifier: GPL-2.0-only
"""Settings of the tools that the unit tests use, and what takes long to make and can be shared."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.unit.certificates import Pki, make_pki

# No deadline: how long one example takes says more about what else the machine does than about our code.
settings.register_profile("kmemwatch", deadline=None)
settings.load_profile("kmemwatch")


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Nobody changes what it has; tests copy files that they want to change."""
    return make_pki(tmp_path_factory.mktemp("pki"))
