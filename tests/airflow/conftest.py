"""Run in two processes: one takes the tests that share ``airflow_stack``, the other those that start their own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what goes to the same process, for ``--dist loadgroup``."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            shares = "airflow_stack" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("shared" if shares else "own"))
