"""What the tests of the job protocol share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_rabbitmq_spark.job import bundle as bundles

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, in a folder where applications can lie beside it."""
    return bundles.write(tmp_path_factory.mktemp("bundle"))
