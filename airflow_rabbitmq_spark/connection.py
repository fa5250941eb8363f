"""Makes an Airflow connection of a cloud service's credentials.

Thus::

    python -m airflow_rabbitmq_spark.connection FILE --format uri|json|command [--test]

``FILE`` holds the credentials as the service gives them (``-`` for standard input; a RabbitMQ URI will do too). What
is printed holds the password: redirect it to where secrets are kept.
"""

from __future__ import annotations

import argparse
import base64
import json
import shlex
import sys
from typing import TYPE_CHECKING, cast
from urllib.parse import quote, urlencode

from airflow_rabbitmq_spark.amqp.endpoint import Endpoint
from airflow_rabbitmq_spark.exceptions import ConfigurationError, RabbitMQSparkError

if TYPE_CHECKING:
    from collections.abc import Sequence


def airflow_fields(endpoint: Endpoint) -> dict[str, object]:
    """The connection in Airflow's own JSON form, **secrets included**.

    :return: as ``AIRFLOW_CONN_...`` and ``airflow connections add --conn-json`` take it.
    """
    extra = endpoint.to_mapping()
    hosts = cast("list[str]", extra.pop("hosts"))
    fields: dict[str, object] = {
        "conn_type": "rabbitmq",
        "login": extra.pop("username", None),
        "password": extra.pop("password", None),
        "schema": extra.pop("virtual_host"),
    }
    if len(endpoint.hosts) == 1:
        fields["host"], fields["port"] = endpoint.hosts[0]
    else:
        fields["host"] = ",".join(hosts)
    if fields["schema"] == "":
        # Airflow cannot tell an empty field from one that is not filled in.
        del fields["schema"]
        extra["virtual_host"] = ""
    fields["extra"] = extra
    return {name: value for name, value in fields.items() if value is not None}


def airflow_uri(endpoint: Endpoint) -> str:
    """The connection as the URI that Airflow reads from ``AIRFLOW_CONN_...``, **secrets included**."""
    fields = airflow_fields(endpoint)
    extra = cast("dict[str, object]", fields["extra"])
    query = {name: _as_query(value) for name, value in extra.items()}
    if "ca_certificate" in query:  # one line, and what people expect to see there
        query["ca_certificate_base64"] = base64.b64encode(query.pop("ca_certificate").encode()).decode()
    user = ""
    if "login" in fields:
        user = f"{quote(str(fields['login']), safe='')}:{quote(str(fields['password']), safe='')}@"
    port = f":{fields['port']}" if "port" in fields else ""
    schema = quote(str(fields.get("schema", "")), safe="")
    return f"rabbitmq://{user}{quote(str(fields['host']), safe='')}{port}/{schema}?{urlencode(query)}"


def _as_query(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def airflow_command(endpoint: Endpoint, conn_id: str) -> str:
    """The command line that adds the connection to Airflow, **secrets included**."""
    return f"airflow connections add {shlex.quote(conn_id)} --conn-json {shlex.quote(_json(endpoint))}"


def _json(endpoint: Endpoint, indent: int | None = None) -> str:
    return json.dumps(airflow_fields(endpoint), ensure_ascii=False, indent=indent)


def _assignments(items: Sequence[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    if not all(name and equals for name, equals, _ in pairs):
        raise ConfigurationError("--set takes NAME=VALUE, such as --set heartbeat=30.")
    return {name: value for name, _, value in pairs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :return: the exit code: 0, or 1 when the credentials or the test failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m airflow_rabbitmq_spark.connection",
        description="Make an Airflow connection of a cloud service's RabbitMQ credentials. The output holds secrets.",
    )
    parser.add_argument("file", metavar="FILE", help="credentials as the service gives them; - for standard input")
    parser.add_argument(
        "--format",
        choices=("uri", "json", "command"),
        default="uri",
        help="uri: for AIRFLOW_CONN_...; json: Airflow's JSON form; command: an `airflow connections add` line",
    )
    parser.add_argument("--conn-id", default="rabbitmq_default", help="for --format command (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option that the credentials do not say, such as username=...; may be given several times",
    )
    parser.add_argument("--test", action="store_true", help="try the connection first; say what was reached")
    options = parser.parse_args(arguments)
    try:
        document = sys.stdin.read() if options.file == "-" else options.file
        if options.file == "-" and not document.strip():
            raise ConfigurationError("standard input is empty: write the credentials to it, or name a file.")
        where = "standard input" if options.file == "-" else options.file
        endpoint = Endpoint.from_mapping({**_assignments(options.set), "credentials": document}, where=where)
        if options.test:
            from airflow_rabbitmq_spark.check import check

            print(check(endpoint), file=sys.stderr)
    except RabbitMQSparkError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except UnicodeDecodeError:
        print("The credentials are not UTF-8 text.", file=sys.stderr)
        return 1
    if options.format == "json":
        print(_json(endpoint, indent=2))
    elif options.format == "command":
        print(airflow_command(endpoint, options.conn_id))
    else:
        print(airflow_uri(endpoint))
    return 0


if __name__ == "__main__":
    sys.exit(main())
