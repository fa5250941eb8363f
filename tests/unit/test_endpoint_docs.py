"""docs/connection.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_rabbitmq_spark import exceptions
from airflow_rabbitmq_spark.amqp.options import OPTIONS

PAGE = (Path(__file__).parents[2] / "docs" / "connection.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_the_table_of_options_is_the_table_of_options():
    described = {name: row for row in rows(section("Options"))[1:] for name in re.findall(r"`(\w+)`", row[0])}
    assert set(described) == set(OPTIONS)
    for name, option in OPTIONS.items():
        default = described[name][1]
        if isinstance(option.default, bool):
            assert default == str(option.default).lower(), name
        elif isinstance(option.default, (int, float)):
            assert default.removesuffix(" s") == f"{option.default:.10g}", name
        elif option.default is not None:
            assert f"`{option.default}`" in default, name


def test_every_error_about_the_broker_has_its_cure():
    known = {
        name
        for name, kind in vars(exceptions).items()
        if isinstance(kind, type)
        and issubclass(kind, (exceptions.ConnectionFailed, exceptions.PublishFailed, exceptions.AccessRefused))
    } - {"ConnectionFailed", "PublishFailed"}
    told = {
        name: row for row in rows(section("Errors and their cures"))[1:] for name in re.findall(r"^`(\w+)`", row[0])
    }
    assert known <= set(told)
    for name, row in told.items():
        assert ("*passes*" in row[0]) is getattr(exceptions, name).transient, name


def test_links_within_the_page_lead_somewhere():
    titles = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= titles
    for picture in re.findall(r"!\[[^]]+\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / picture).is_file()
