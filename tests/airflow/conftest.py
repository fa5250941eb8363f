"""Two processes run these tests: one those that share an Airflow, the other those that start what they need."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What goes to the same process, for ``--dist loadgroup``."""
    for item in items:
        shares = "airflow_stack" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("shared" if shares else "own"))
