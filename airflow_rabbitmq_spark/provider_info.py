"""What Airflow asks of a provider, through the entry point ``apache_airflow_provider``.

Airflow's page builds the connection form from this dictionary alone and never imports the hook: so this imports
nothing. ``tests/unit/test_provider_info.py`` holds the fields against the table in ``amqp/options.py``.
"""

from __future__ import annotations

from typing import Any

# The groups, in the order of the form, which shows one of them open at a time.
_CLOUD = "Cloud credentials"
_TLS = "TLS"
_CLIENT = "Client certificate"
_TIMING = "Timing and limits"
_JOBS = "Jobs"
_NAMES = "Name and links"


def _field(label: str, description: str, section: str, kind: str = "string", **schema: Any) -> Any:
    """One field of the form. Every one may be left empty."""
    return {
        "label": label,
        "description": description,
        "schema": {"type": [kind, "null"], "section": section, **schema},
    }


def _conn_fields() -> dict[str, Any]:
    return {
        "credentials_secret": _field(
            "Credentials (JSON)",
            "The credential document of a cloud service, pasted whole: IBM Cloud, Compose, CloudAMQP, Amazon MQ, or "
            "RabbitMQ on Kubernetes. Then host, login, password, virtual host and CA stay empty. Fill in the port: "
            "Airflow's Test button refuses a connection without one.",
            _CLOUD,
            format="multiline",
        ),
        "tls": _field(
            "Encrypt (TLS)",
            "Off only for a broker that speaks plain AMQP, mostly on port 5672.",
            _TLS,
            "boolean",
            default=True,
        ),
        "ca_certificate": _field(
            "CA certificate",
            "The authority that signed the broker's certificate: paste the PEM text, its base64, or a file's path. One "
            "or many. Empty: the authorities of the operating system.",
            _TLS,
            format="multiline",
        ),
        "server_name": _field(
            "Server name",
            "Name in the broker's certificate, when it is not the host's.",
            _TLS,
        ),
        "minimum_tls_version": _field(
            "Oldest TLS version",
            "The broker must speak at least this one.",
            _TLS,
            enum=["TLSv1.2", "TLSv1.3"],
            default="TLSv1.2",
        ),
        "check_hostname": _field(
            "Check the host name",
            "Off: any server with a certificate of the same authority is taken for the broker.",
            _TLS,
            "boolean",
            default=True,
        ),
        "verify": _field(
            "Verify the certificate",
            "Off: anybody on the way can read along, the password included. Set the CA certificate instead.",
            _TLS,
            "boolean",
            default=True,
        ),
        "client_certificate": _field(
            "Certificate",
            "Only where the broker asks for one: paste the PEM text with its chain, its base64, or a file's path.",
            _CLIENT,
            format="multiline",
        ),
        "private_key": _field(
            "Private key",
            "Key of the certificate: paste the PEM text, its base64, or a file's path.",
            _CLIENT,
            format="multiline",
        ),
        "private_key_passphrase": _field(
            "Passphrase",
            "Of the private key, where it is encrypted.",
            _CLIENT,
            format="password",
        ),
        "sasl_mechanism": _field(
            "Log in with",
            "PLAIN: login and password. EXTERNAL: the user named in this certificate; leave login and password empty.",
            _CLIENT,
            enum=["PLAIN", "EXTERNAL"],
            default="PLAIN",
        ),
        "heartbeat": _field(
            "Heartbeat (seconds)",
            "A dead peer is noticed after two to three. Empty: 10.",
            _TIMING,
            "integer",
            minimum=1,
            maximum=65535,
        ),
        "connection_timeout": _field(
            "Connection timeout (seconds)",
            "For one host to let us in: TCP, TLS and login. Empty: 15.",
            _TIMING,
            "number",
            minimum=0.1,
            maximum=3600,
        ),
        "blocked_connection_timeout": _field(
            "Blocked timeout (seconds)",
            "To wait while the broker takes no messages because of a memory or disk alarm. Empty: 60.",
            _TIMING,
            "number",
            minimum=0.1,
            maximum=86400,
        ),
        "attempts": _field(
            "Attempts",
            "How often to try the whole list of hosts before giving up. Empty: 3.",
            _TIMING,
            "integer",
            minimum=1,
            maximum=100,
        ),
        "delay": _field(
            "Delay (seconds)",
            "Between two attempts, give or take half by chance. Empty: 1.",
            _TIMING,
            "number",
            minimum=0,
            maximum=3600,
        ),
        "frame_max": _field(
            "Largest frame (bytes)",
            "Empty: 131072.",
            _TIMING,
            "integer",
            minimum=4096,
            maximum=131072,
        ),
        "max_message_bytes": _field(
            "Largest message (bytes)",
            "Larger ones are refused before they are sent. Empty: 16777216, RabbitMQ 4's own limit.",
            _TIMING,
            "integer",
            minimum=1,
            maximum=536870912,
        ),
        "exchange": _field(
            "Exchange",
            "Where job events are published. Empty: airflow.spark.",
            _JOBS,
        ),
        "queue_type": _field(
            "Queue type",
            "Quorum queues survive the loss of a broker node; classic ones are cheaper.",
            _JOBS,
            enum=["classic", "quorum"],
            default="classic",
        ),
        "retention": _field(
            "Retention (seconds)",
            "The broker deletes a job's queue when nobody has used it for so long. Empty: 604800, a week.",
            _JOBS,
            "integer",
            minimum=60,
            maximum=4233600,
        ),
        "connection_name": _field(
            "Connection name",
            "Shown in the broker's list of connections. Empty: the package, DAG, task and run.",
            _NAMES,
        ),
        "management_url": _field(
            "Management page",
            "For links from a task to its queue: https://rabbitmq.example.com:15671, without user and password.",
            _NAMES,
        ),
    }


def _connection_type(name: str, hook_class: str, label: str) -> dict[str, Any]:
    fields = _conn_fields()
    if name != "rabbitmq":
        del fields["tls"]  # the type says it
    if name == "amqp":  # where an option of TLS would be a contradiction
        fields = {key: field for key, field in fields.items() if field["schema"]["section"] not in {_TLS, _CLIENT}}
    return {
        "connection-type": name,
        "hook-class-name": f"airflow_rabbitmq_spark.hooks.rabbitmq.{hook_class}",
        "hook-name": label,
        "conn-fields": fields,
        "ui-field-behaviour": {
            "hidden-fields": [],
            "relabeling": {"schema": "Virtual host"},
            "placeholders": {
                "host": "rabbitmq.example.com, or several: host1:5671,host2:5671",
                "port": "5672" if name == "amqp" else "5671",
                "login": "guest",
                "schema": "/",
            },
        },
    }


def _option(description: str, default: str, kind: str = "string", example: str | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }


def _listener_section() -> dict[str, Any]:
    """What ``listeners/settings.py`` reads."""
    return {
        "description": "Publish what becomes of DAG runs and tasks to RabbitMQ, as CloudEvents.",
        "options": {
            "enabled": _option("Whether anything is published.", "False", "boolean"),
            "rabbitmq_conn_id": _option("The broker: a connection of type RabbitMQ.", "rabbitmq_default"),
            "exchange": _option(
                "The topic exchange; made where it is missing. Routing keys are dag_run.<dag_id>.<state> and "
                "task_instance.<dag_id>.<task_id>.<state>.",
                "airflow.events",
            ),
            "dag_allow": _option("DAG ids to publish: globs, separated by commas.", "*", example="sales_*,finance"),
            "dag_deny": _option("DAG ids never to publish: globs, separated by commas.", "", example="*_secret"),
            "dag_run_events": _option("Whether DAG runs are published.", "True", "boolean"),
            "task_instance_events": _option("Whether task instances are published.", "True", "boolean"),
            "queue_size": _option(
                "Events that a process keeps while the broker is away; then the oldest are dropped.", "1000", "integer"
            ),
            "flush_timeout": _option(
                "Seconds that a process, each task's too, waits at its end for the broker to take what is left.",
                "2.0",
                "float",
            ),
        },
    }


def get_provider_info() -> dict[str, Any]:
    """The provider's dictionary, as Airflow's schema wants it."""
    return {
        "package-name": "airflow-rabbitmq-spark",
        "name": "RabbitMQ and Spark",
        "description": "Run Spark applications from Airflow and be told by RabbitMQ what becomes of them.",
        "connection-types": [
            _connection_type("rabbitmq", "RabbitMQHook", "RabbitMQ"),
            # A URI in an environment variable makes its scheme the type: these let such a connection be tested.
            _connection_type("amqps", "AMQPSHook", "RabbitMQ (amqps URI)"),
            _connection_type("amqp", "AMQPHook", "RabbitMQ (amqp URI, not encrypted)"),
        ],
        "notifications": ["airflow_rabbitmq_spark.notifications.rabbitmq.RabbitMQNotifier"],
        "extra-links": [
            "airflow_rabbitmq_spark.links.spark_job.RabbitMQQueueLink",
            "airflow_rabbitmq_spark.links.spark_job.SparkUILink",
            "airflow_rabbitmq_spark.links.spark_job.SparkMasterLink",
        ],
        "config": {"rabbitmq_listener": _listener_section()},
    }
