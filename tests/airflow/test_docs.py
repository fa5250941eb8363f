"""What the README shows, as it stands there, in a real Airflow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.markdown import example

if TYPE_CHECKING:
    from stack.airflow import Airflow


def test_the_readme(airflow_stack: Airflow):
    folder = airflow_stack.directory / "readme"
    folder.mkdir()
    application = folder / "train.py"
    application.write_text(example("README.md", "python application").text)
    text = example("README.md", "python dag").text
    assert text.count('"/shared/jobs/train.py"') == 1
    (airflow_stack.directory / "dags" / "readme.py").write_text(text.replace("/shared/jobs/train.py", str(application)))

    airflow_stack.wait_for_dag("train_daily", timeout=240)
    run_id = airflow_stack.trigger("train_daily")
    state = airflow_stack.wait_for_run("train_daily", run_id, timeout=240)
    log = airflow_stack.log("train_daily", run_id, "train")
    assert state == "success", log

    assert airflow_stack.xcom("train_daily", run_id, "train") == {"accuracy": 0.92}
    assert "accuracy 0.92" in airflow_stack.log("train_daily", run_id, "report")
    # What docs/dags.md shows of the log and of the details beside the result.
    shown = example("dags.md", "text", "fold 1 of 5").text.splitlines()
    assert f"Submitted {application} as driver-" in log
    assert shown[0].startswith("Submitted /shared/jobs/train_digits.py as driver-")
    assert "The driver runs on " in log
    assert shown[1].startswith("The driver runs on ")
    assert " 33% fold 1 of 3 accuracy=0.9" in log
    assert shown[2].startswith(" 20% fold 1 of 5 accuracy=0.95")
    details = airflow_stack.xcom("train_daily", run_id, "train", "spark_job")
    assert {name: type(value) for name, value in details.items()} == {
        name: type(value) for name, value in json.loads(example("dags.md", "json xcom").text).items()
    }
