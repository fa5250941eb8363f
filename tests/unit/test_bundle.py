"""The bundle: what it holds, and that a Python with nothing installed runs it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import airflow_rabbitmq_spark
from airflow_rabbitmq_spark.job import bundle

SPARK_PYTHON = Path(__file__).parents[2] / ".venv-spark" / "bin" / "python"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return bundle.write(tmp_path_factory.mktemp("bundle"))


def run(path, *arguments, code=0, python=SPARK_PYTHON, **more):
    done = subprocess.run(
        # Isolated, and in another folder: nothing of this checkout is to help.
        [str(python), "-I", str(path), *map(str, arguments)],
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **more,
    )
    assert done.returncode == code, done.stderr
    return done


def test_it_holds_the_drivers_side_and_pika_and_nothing_of_airflow():
    names = zipfile.ZipFile(io.BytesIO(bundle.build())).namelist()
    folders = {name.rpartition("/")[0] for name in names}
    assert folders >= {
        "",
        "airflow_rabbitmq_spark",
        "airflow_rabbitmq_spark/amqp",
        "airflow_rabbitmq_spark/job",
        "pika",
    }
    assert all(f.split("/")[0] in {"", "airflow_rabbitmq_spark", "pika"} for f in folders)
    ours = {f for f in folders if f.startswith("airflow_rabbitmq_spark/")}
    assert ours == {"airflow_rabbitmq_spark/amqp", "airflow_rabbitmq_spark/job"}
    assert all(name.endswith(".py") for name in names)


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path):
    in_the_way = bundle.write(tmp_path)
    in_the_way.unlink()
    in_the_way.mkdir()
    with pytest.raises(OSError, match="directory"):
        bundle.write(tmp_path)
    assert list(tmp_path.iterdir()) == [in_the_way]


def test_the_same_content_is_the_same_bytes(monkeypatch):
    before = bundle.build()
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert bundle.build() == before


def test_it_is_written_once_and_never_half(tmp_path):
    path = bundle.write(tmp_path)
    assert path.name.startswith(f"airflow-rabbitmq-spark-{airflow_rabbitmq_spark.__version__}-")
    assert path.stat().st_mode & 0o777 == 0o644
    first = path.stat().st_mtime_ns, path.stat().st_ino
    assert bundle.write(tmp_path) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == first
    assert list(tmp_path.iterdir()) == [path]


def test_one_that_somebody_changed_is_replaced(tmp_path):
    path = bundle.write(tmp_path)
    path.write_bytes(b"something else")
    assert bundle.write(tmp_path).read_bytes() == bundle.build()


def test_a_link_that_somebody_put_there_is_replaced_and_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    path = bundle.write(tmp_path)
    path.rename(elsewhere)
    elsewhere.write_bytes(b"theirs")
    path.symlink_to(elsewhere)
    assert bundle.write(tmp_path) == path
    assert not path.is_symlink()
    assert elsewhere.read_bytes() == b"theirs"


def test_the_command_writes_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "airflow_rabbitmq_spark.job.bundle", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert Path(done.stdout.strip()).read_bytes() == bundle.build()


def test_an_application_runs_in_it_as_it_would_alone(path, tmp_path):
    application = tmp_path / "application.py"
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    application.write_text(
        "import sys, beside\n"
        "from airflow_rabbitmq_spark.job import open_job\n"
        "import pika\n"
        "with open_job() as job:\n"
        "    job.progress(0.5, 'half')\n"
        "    job.result([1])\n"
        "assert 'airflow' not in sys.modules and 'pyspark' not in sys.modules\n"
        "print(__name__, sys.argv[1:], sys.argv[0] == __file__, beside.NAME, job.job_id, pika.__file__)\n"
    )
    done = run(path, application, "--one", "two words")
    assert done.stdout == (f"__main__ ['--one', 'two words'] True beside None {path}/pika/__init__.py\n")
    assert "Not started by Airflow" in done.stderr
    assert "50% half" in done.stderr


def test_processes_that_an_application_spawns_find_the_package_too(path, tmp_path):
    # A spawned process begins with nothing but its parent's sys.path: it must have the bundle, and the application's folder.
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    application = tmp_path / "application.py"
    application.write_text(
        "import multiprocessing\n"
        "def work(n):\n"
        "    import beside, pika\n"
        "    from airflow_rabbitmq_spark.job import open_job\n"
        "    return n * 2, beside.NAME, pika.__file__, open_job.__code__.co_filename\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(*pool.apply_async(work, [21]).get(60))\n"
    )
    source = f"{path}/airflow_rabbitmq_spark/job/session.py"
    assert run(path, application).stdout == f"42 beside {path}/pika/__init__.py {source}\n"


def test_the_applications_exit_code_is_the_processs(path, tmp_path):
    application = tmp_path / "application.py"
    application.write_text("import sys\nsys.exit(3)\n")
    run(path, application, code=3)
    application.write_text("1/0\n")
    assert "ZeroDivisionError" in run(path, application, code=1).stderr


def test_an_application_that_is_not_there(path):
    done = run(path, "nowhere/train.py", code=1)
    assert "The application 'nowhere/train.py' does not exist on " in done.stderr
    assert "put the file on every Spark worker under the same path" in done.stderr


def test_every_module_of_it_imports_without_anything_installed(path, tmp_path):
    application = tmp_path / "application.py"
    application.write_text(
        "import importlib, sys, zipfile\n"
        "sys.path = [entry for entry in sys.path if 'site-packages' not in entry]\n"
        "for name in sorted(zipfile.ZipFile(sys.argv[1]).namelist()):\n"
        # Adapters of pika's for frameworks that are not there, and this very module.
        "    if name == '__main__.py' or 'gevent' in name or 'tornado' in name or 'twisted' in name: continue\n"
        "    importlib.import_module(name[:-3].replace('/__init__', '').replace('/', '.'))\n"
        "print(len(sys.modules) > 50)\n"
    )
    assert run(path, application, path).stdout == "True\n"


@pytest.mark.parametrize("sigint", [signal.SIG_DFL, signal.SIG_IGN], ids=["heeded", "ignored"])
def test_the_jvm_that_is_gone_ends_the_application(path, tmp_path, sigint):
    # The parent stands for the JVM: Spark starts Python with this variable set.
    application = tmp_path / "application.py"
    application.write_text("import time\nprint('runs', flush=True)\ntime.sleep(120)\n")
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([{str(SPARK_PYTHON)!r}, '-I', {str(path)!r}, {str(application)!r}], stdout=-1, text=True)\n"
        "child.stdout.readline()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent],
        env={**os.environ, "PYSPARK_GATEWAY_PORT": "1"},
        capture_output=True,
        text=True,
        # As what a shell started in the background has it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
        # Its standard error is closed only when the child has ended too.
        timeout=60,
        check=True,
    )
    assert "The JVM of this Spark driver is gone" in done.stderr
    assert "KeyboardInterrupt" in done.stderr
