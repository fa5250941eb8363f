"""The bundle: one executable zip with all that a driver needs, so that Spark's hosts need nothing installed.

It holds this package without its Airflow side, and pika. Spark hands it to Python as the application; its ``__main__``
is ``job.launcher``. ``python -m airflow_rabbitmq_spark.job.bundle DIRECTORY`` writes it by hand.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import pika

import airflow_rabbitmq_spark

MAIN = "from airflow_rabbitmq_spark.job.launcher import main\n\nmain()\n"

#: A zip knows no dates before this one. A fixed date keeps the bytes, and so the name, the same for the same content.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build() -> bytes:
    """The bundle's bytes: the same for the same versions."""
    ours = Path(airflow_rabbitmq_spark.__file__).parent
    pikas = Path(pika.__file__).parent
    files = {"__main__.py": MAIN.encode()}
    for name in ("__init__.py", "exceptions.py"):
        files[f"{ours.name}/{name}"] = (ours / name).read_bytes()
    for folder, root in ((ours / "amqp", ours.parent), (ours / "job", ours.parent), (pikas, pikas.parent)):
        for path in sorted(folder.rglob("*.py")):
            files[path.relative_to(root).as_posix()] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def write(directory: str | Path | None = None) -> Path:
    """Write the bundle, unless it is there, and return its path.

    :param directory: where Spark's workers can read it; the folder for temporary files when not given, which is right
        for a Spark worker on the same machine.
    :raises OSError: it cannot be written there.
    """
    content = build()
    digest = hashlib.sha256(content).hexdigest()[:12]
    folder = Path(directory or tempfile.gettempdir())
    target = folder / f"airflow-rabbitmq-spark-{airflow_rabbitmq_spark.__version__}-{digest}.zip"
    # One of the same name that somebody else put there could be changed after the look: it is replaced, or refused.
    if target.is_file() and target.stat().st_uid == os.getuid() and target.read_bytes() == content:
        return target
    # In one step, so that a Spark worker never reads half of it, and readable for its user.
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=target.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


if __name__ == "__main__":
    print(write(sys.argv[1] if len(sys.argv) > 1 else "."))
