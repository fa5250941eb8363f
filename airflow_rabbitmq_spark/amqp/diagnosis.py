"""What a failure means and what to do about it: from pika's, OpenSSL's and the socket's errors to ours.

Every message names the step that failed, the endpoint, the likely cause and what to change. None holds a secret.

Pika throws away much of what it learns: a refused login is a ``ProbableAuthenticationError`` around the text of
another error. So texts are read too, and where even they say nothing (an end-of-file after a TLS alert was lost) the
port is looked at once more with a bare socket (``probe.py``).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

from pika import exceptions as pika_errors
from pika.adapters.utils import connection_workflow as workflow

from airflow_rabbitmq_spark.amqp import explain_connecting as connecting
from airflow_rabbitmq_spark.amqp import explain_open as opened
from airflow_rabbitmq_spark.amqp.explain_connecting import Place
from airflow_rabbitmq_spark.amqp.probe import speaks_tls as probe_tls
from airflow_rabbitmq_spark.exceptions import ConnectionFailed, RabbitMQSparkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_rabbitmq_spark.amqp.endpoint import Endpoint

__all__ = ["EXPLANATIONS", "explain", "probe_tls"]

#: How far each step of connecting comes, so that of several failures (one per address) the furthest is told.
_STEPS = ("lookup", "tcp", "tls", "protocol", "authentication", "vhost", "open")


def explain(error: BaseException, endpoint: Endpoint, *, host: tuple[str, int] | None = None) -> RabbitMQSparkError:
    """The one of this package's errors that ``error`` amounts to, with a message that says what to do.

    May take a look at the port after a failed attempt to connect, which blocks for some seconds at the most; never
    for an error of a connection that was open.

    :param error: what pika, ``ssl`` or ``socket`` raised, at connect or later.
    :param endpoint: where it happened.
    :param host: the one of the endpoint's hosts that it happened at.
    :return: a new error, or ``error`` itself if it is one of ours.
    """
    if isinstance(error, RabbitMQSparkError):
        return error
    if isinstance(error, workflow.AMQPConnectionWorkflowFailed) and error.exceptions:
        candidates = [explain(inner, endpoint, host=host) for inner in error.exceptions]
        return max(candidates, key=_step)
    if isinstance(error, workflow.AMQPConnectorPhaseErrorBase):
        return explain(error.exception, endpoint, host=host)
    if type(error) is pika_errors.AMQPConnectionError and error.args and isinstance(error.args[0], BaseException):
        return explain(error.args[0], endpoint, host=host)
    place = Place(endpoint, host)
    for kind in type(error).__mro__:
        if kind in EXPLANATIONS:
            return EXPLANATIONS[kind](error, place)
    return RabbitMQSparkError(f"{place}: {type(error).__name__}: {error}")


def _step(error: RabbitMQSparkError) -> int:
    return _STEPS.index(error.step) if isinstance(error, ConnectionFailed) else len(_STEPS)


#: Every class of ``pika.exceptions`` and what pika passes through, and its explanation. A class not listed is
#: explained as its nearest listed base; a test holds this list against pika's.
EXPLANATIONS: dict[type[BaseException], Callable[[BaseException, Place], RabbitMQSparkError]] = {
    socket.gaierror: connecting.lookup_failed,
    TimeoutError: connecting.timed_out,
    asyncio.TimeoutError: connecting.timed_out,  # the same from Python 3.11 on
    OSError: connecting.os_error,
    ssl.SSLCertVerificationError: connecting.certificate_refused,
    ssl.SSLError: connecting.tls_failed,
    workflow.AMQPConnectorStackTimeout: connecting.timed_out,
    workflow.AMQPConnectorException: opened.closed_here,
    pika_errors.AMQPError: opened.misuse,
    pika_errors.AMQPConnectionError: opened.lost,
    pika_errors.ConnectionOpenAborted: connecting.aborted,
    pika_errors.StreamLostError: opened.lost,
    pika_errors.IncompatibleProtocolError: connecting.incompatible,
    pika_errors.AuthenticationError: connecting.mechanism_missing,
    pika_errors.ProbableAuthenticationError: connecting.login_refused,
    pika_errors.ProbableAccessDeniedError: connecting.virtual_host_refused,
    pika_errors.NoFreeChannels: opened.misuse,
    pika_errors.ConnectionWrongStateError: opened.closed_here,
    pika_errors.ConnectionClosed: opened.connection_closed,
    pika_errors.ConnectionClosedByBroker: opened.connection_closed,
    pika_errors.ConnectionClosedByClient: opened.closed_here,
    pika_errors.ConnectionBlockedTimeout: opened.blocked,
    pika_errors.AMQPHeartbeatTimeout: opened.heartbeat,
    pika_errors.AMQPChannelError: opened.misuse,
    pika_errors.ChannelWrongStateError: opened.closed_here,
    pika_errors.ChannelClosed: opened.channel_closed,
    pika_errors.ChannelClosedByBroker: opened.channel_closed,
    pika_errors.ChannelClosedByClient: opened.closed_here,
    pika_errors.DuplicateConsumerTag: opened.misuse,
    pika_errors.ConsumerCancelled: opened.consumer_cancelled,
    pika_errors.UnroutableError: opened.unroutable,
    pika_errors.NackError: opened.rejected,
    pika_errors.InvalidChannelNumber: opened.misuse,
    pika_errors.ProtocolSyntaxError: opened.broken,
    pika_errors.UnexpectedFrameError: opened.broken,
    pika_errors.ProtocolVersionMismatch: opened.broken,
    pika_errors.BodyTooLongError: opened.broken,
    pika_errors.InvalidFrameError: opened.broken,
    pika_errors.InvalidFieldTypeException: opened.broken,
    pika_errors.UnsupportedAMQPFieldException: opened.unencodable,
    pika_errors.MethodNotImplemented: opened.misuse,
    pika_errors.ChannelError: opened.misuse,
    pika_errors.ReentrancyError: opened.misuse,
    pika_errors.ShortStringTooLong: opened.unencodable,
    pika_errors.DuplicateGetOkCallback: opened.misuse,
}
