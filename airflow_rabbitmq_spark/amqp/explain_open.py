"""What it means that an open connection or channel was closed, or that a message was not taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.amqp.explain_connecting import reply_code, text_of
from airflow_rabbitmq_spark.exceptions import (
    AccessRefused,
    BrokerBlocked,
    ConfigurationError,
    ConnectionFailed,
    ConnectionLost,
    NotFound,
    ProtocolMismatch,
    PublishFailed,
    RabbitMQSparkError,
    Rejected,
    TopologyConflict,
    Unroutable,
)

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.amqp.explain_connecting import Place


def lost(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The stream ended without a goodbye."""
    return ConnectionLost(
        f"The connection to {place} was lost ({text_of(error)}): the broker stopped, or the network cut it."
    )


def heartbeat(_error: BaseException, place: Place) -> RabbitMQSparkError:
    """No heartbeat came."""
    return ConnectionLost(
        f"The connection to {place} was lost: no heartbeat within twice {place.endpoint.heartbeat} s. The network is cut "
        "or the broker is overloaded; raise option `heartbeat` if it is merely slow."
    )


def blocked(_error: BaseException, place: Place) -> RabbitMQSparkError:
    """The broker blocked publishers for too long."""
    return BrokerBlocked(
        f"{place} has taken no messages for {place.endpoint.blocked_connection_timeout:g} s because of a memory or disk "
        "alarm. Free memory or disk on the broker (rabbitmqctl status names the alarm), or raise option "
        "`blocked_connection_timeout`."
    )


def closed_here(_error: BaseException, place: Place) -> RabbitMQSparkError:
    """It was closed on this side."""
    return ConnectionLost(f"The connection to {place} is closed.")


def connection_closed(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The broker closed the connection and said why."""
    code, text = reply_code(error), text_of(error)
    if code in {320, 541, None}:  # forced: shutdown, closed by an operator, vhost gone or down; or an internal error
        return ConnectionLost(f"{place} closed the connection: {text}. It is stopping, or an operator closed it.")
    if code == 403:
        return access_refused(text, place)
    if code == 501 and "frame" in text.lower():
        return ConnectionFailed(f"{place} closed the connection: {text}. Lower option `frame_max`.")
    return ConnectionFailed(f"{place} closed the connection because of a wrong request: {text}.")


def access_refused(text: str, place: Place) -> RabbitMQSparkError:
    """The user may not do it, or nobody may."""
    endpoint = place.endpoint
    if "exclusive use" in text:
        return AccessRefused(f"Another consumer has this queue for itself ({text}) at {place}.")
    if "reserved prefix" in text:
        return AccessRefused(f"Names that start with 'amq.' belong to the broker ({text}) at {place}.")
    return AccessRefused(
        f"User {endpoint.username!r} may not do this at {place}: {text}.",
        f"Grant it with: rabbitmqctl set_permissions -p '{endpoint.virtual_host}' '{endpoint.username}' CONFIGURE WRITE "
        "READ, each a pattern such as '^airflow\\.spark'.",
    )


def channel_closed(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The broker closed the channel and said why."""
    code, text = reply_code(error), text_of(error)
    if code == 403:
        return access_refused(text, place)
    if code == 404:
        return NotFound(f"There is no such queue or exchange at {place}: {text}. Declare it, or correct its name.")
    if code == 405:
        return TopologyConflict(f"The queue belongs to another connection alone, at {place}: {text}.")
    if code == 406 and "timed out" in text:
        return ConnectionLost(
            f"{place} closed the channel because a message was held unacknowledged for longer than its "
            f"consumer_timeout: {text}. Acknowledge sooner, or raise consumer_timeout on the broker."
        )
    if code == 406 and "size" in text:
        return PublishFailed(f"{place} refuses the message as too large: {text}. Its limit is max_message_size.")
    if code == 406 and "unknown delivery tag" in text:
        return RabbitMQSparkError(f"A message was acknowledged twice, or on another channel, at {place}: {text}.")
    if code == 406:
        return TopologyConflict(
            f"The queue or exchange exists at {place} with other properties, or is in use: {text}. Delete it, or "
            "declare it as it is."
        )
    if code in {312, 313}:  # no-route, no-consumers
        return Unroutable(f"No queue took the message at {place}: {text}.")
    return RabbitMQSparkError(f"{place} closed the channel because of a wrong request: {text}.")


def consumer_cancelled(_error: BaseException, place: Place) -> RabbitMQSparkError:
    """The broker ended a consumer."""
    return NotFound(f"{place} ended the consumer: its queue was deleted or expired, or its node is down.")


def unroutable(error: BaseException, place: Place) -> RabbitMQSparkError:
    """A mandatory message came back."""
    return Unroutable(
        f"No queue is bound for the message at {place}: {text_of(error)}. Declare and bind the queue first."
    )


def rejected(error: BaseException, place: Place) -> RabbitMQSparkError:
    """The broker said no to a message."""
    return Rejected(f"{place} refused the message: {text_of(error)}. A queue is full, or its node is down.")


def broken(error: BaseException, place: Place) -> RabbitMQSparkError:
    """What came is not AMQP."""
    return ProtocolMismatch(
        f"What came from {place} is not AMQP 0-9-1 ({type(error).__name__}: {text_of(error)}). Check that the port is the "
        "broker's and that no proxy changes the data."
    )


def unencodable(error: BaseException, place: Place) -> RabbitMQSparkError:
    """What was to be sent cannot be written in AMQP."""
    return ConfigurationError(
        f"AMQP cannot carry a name or header that was to be sent to {place} ({type(error).__name__}: {text_of(error)}). "
        "Names are at most 255 bytes; headers hold text, numbers, booleans, times, lists and mappings."
    )


def misuse(error: BaseException, place: Place) -> RabbitMQSparkError:
    """Pika was used in a way it does not allow."""
    return RabbitMQSparkError(f"The connection to {place} was used wrongly: {type(error).__name__}: {text_of(error)}.")
