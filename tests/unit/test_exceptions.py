"""The tree of exceptions is as it is drawn."""

from __future__ import annotations

import inspect
import re

from airflow_rabbitmq_spark import exceptions


def drawn() -> dict[str, tuple[str, bool, bool]]:
    """Name -> (parent, also a ValueError, transient), read from the drawing."""
    found: dict[str, tuple[str, bool, bool]] = {}
    path: list[str] = []
    for line in inspect.cleandoc(exceptions.__doc__ or "").splitlines():
        if match := re.match(r"^    ((?:│   |    )*)(?:[├└]── )?(\w+)(.*)$", line):
            branch = "── " in line
            level = len(match[1]) // 4 + 1 if branch else 0
            path = [*path[:level], match[2]]
            parent = path[level - 1] if level else "Exception"
            found[match[2]] = (parent, "ValueError" in match[3], match[3].rstrip().endswith("(transient)"))
    return found


def test_the_drawing_is_the_tree():
    classes = {
        name: (item.__bases__[0].__name__, ValueError in item.__bases__, item.transient)
        for name, item in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(item, exceptions.RabbitMQSparkError)
    }
    assert drawn() == classes


def test_a_child_of_something_transient_says_so_itself():
    # `transient` is inherited, and nobody reads it off a parent in the drawing.
    for _, item in inspect.getmembers(exceptions, inspect.isclass):
        if issubclass(item, exceptions.RabbitMQSparkError) and item.transient:
            assert "transient" in vars(item), item


def test_every_exception_says_what_it_is():
    for _, item in inspect.getmembers(exceptions, inspect.isclass):
        assert item.__doc__
