"""Every error this package raises on purpose.

::

    RabbitMQSparkError
    ├── ConfigurationError (also a ValueError)   an option is wrong; nothing was tried
    ├── ConnectionFailed                         the broker could not be reached or refused us
    │   ├── HostNotFound                         name lookup                          (transient)
    │   ├── BrokerUnreachable                    TCP: refused, timed out, silent      (transient)
    │   ├── TLSFailed                            handshake or certificate
    │   ├── ProtocolMismatch                     TLS to a plain port, or the reverse
    │   ├── AuthenticationFailed                 user name or password
    │   ├── VirtualHostRefused                   no such vhost, or not for this user
    │   └── ConnectionLost                       it was open, and is gone             (transient)
    ├── AccessRefused                            the user may not do this
    ├── NotFound                                 no such queue or exchange
    ├── TopologyConflict                         it exists, declared otherwise or locked
    ├── PublishFailed                            the message was not taken
    │   ├── Unroutable                           no queue was bound for it
    │   ├── Rejected                             the broker said no (nack)            (transient)
    │   ├── Unconfirmed                          no answer in time: may have arrived  (transient)
    │   └── BrokerBlocked                        memory or disk alarm                 (transient)
    ├── EventInvalid (also a ValueError)         not an event of the job protocol
    ├── SubmissionFailed                         Spark did not take the application
    │   └── MasterUnreachable                    no answer from the Spark master      (transient)
    └── JobError                                 what became of a job
        ├── JobFailed                            the application failed
        ├── JobCancelled                         it obeyed a cancel
        ├── JobLost                              the driver died without a word       (transient)
        ├── JobNeverStarted                      no driver reported in time           (transient)
        ├── JobVanished                          its queue is gone
        ├── JobSuperseded                        another driver owns this job
        └── ResultInvalid (also a ValueError)    the result is not JSON, or too large

``transient`` says whether the same call may succeed later without anybody changing anything: retries are for those.
"""

from __future__ import annotations

from typing import ClassVar


class RabbitMQSparkError(Exception):
    """Base of all errors of this package."""

    transient: ClassVar[bool] = False


class ConfigurationError(RabbitMQSparkError, ValueError):
    """An option is wrong, unknown or contradicts another one. Raised before any socket is opened."""


class ConnectionFailed(RabbitMQSparkError):
    """The broker could not be reached, or refused the connection.

    ``step`` names how far the attempt came: ``lookup``, ``tcp``, ``tls``, ``protocol``, ``authentication``,
    ``vhost`` or ``open``.
    """

    step: ClassVar[str] = "open"


class HostNotFound(ConnectionFailed):
    """The host's name could not be looked up."""

    transient = True
    step = "lookup"


class BrokerUnreachable(ConnectionFailed):
    """Nobody answered at the address: connection refused, timed out, or accepted and then silent."""

    transient = True
    step = "tcp"


class TLSFailed(ConnectionFailed):
    """The TLS handshake failed: unknown authority, wrong host name, expired or missing certificate."""

    step = "tls"


class ProtocolMismatch(ConnectionFailed):
    """TLS was spoken to a plain port, or plain AMQP to a TLS port."""

    step = "protocol"


class AuthenticationFailed(ConnectionFailed):
    """The broker refused the user name and password (or the client certificate)."""

    step = "authentication"


class VirtualHostRefused(ConnectionFailed):
    """The virtual host does not exist, or the user has no access to it."""

    step = "vhost"


class ConnectionLost(ConnectionFailed):
    """An open connection is gone."""

    transient = True


class AccessRefused(RabbitMQSparkError):
    """The user lacks the permission for an operation.

    :param refusal: what was refused.
    :param remedy: what to change, the end of the message. Who knows better what it takes says that instead.
    """

    def __init__(self, refusal: str, remedy: str = "") -> None:
        super().__init__(f"{refusal} {remedy}".rstrip())
        self.refusal = refusal
        self.remedy = remedy


class NotFound(RabbitMQSparkError):
    """The queue or exchange does not exist."""


class TopologyConflict(RabbitMQSparkError):
    """The queue or exchange exists with other arguments, or is locked by another connection."""


class PublishFailed(RabbitMQSparkError):
    """A message was not taken by the broker."""


class Unroutable(PublishFailed):
    """No queue was bound for the message's routing key, and it was published as mandatory."""


class Rejected(PublishFailed):
    """The broker refused the message (``basic.nack``), for example because a queue is full."""

    transient = True


class Unconfirmed(PublishFailed):
    """No confirm arrived in time. The message may or may not have been stored."""

    transient = True


class BrokerBlocked(PublishFailed):
    """The broker has blocked publishers because of a memory or disk alarm."""

    transient = True


class EventInvalid(RabbitMQSparkError, ValueError):
    """A message is not an event of the job protocol."""


class SubmissionFailed(RabbitMQSparkError):
    """Spark did not take the application."""


class MasterUnreachable(SubmissionFailed):
    """No Spark master answered at its REST submission address."""

    transient = True


class JobError(RabbitMQSparkError):
    """What became of a job, when it was not success."""


class JobFailed(JobError):
    """The application raised, exited with a code, or its process was told to end."""


class JobCancelled(JobError):
    """The application obeyed a cancel."""


class JobLost(JobError):
    """The driver's connection ended and it never came back: killed, out of memory, or cut off."""

    transient = True


class JobNeverStarted(JobError):
    """No driver of the job reported before the start timeout."""

    transient = True


class JobVanished(JobError):
    """The job's queue was deleted or expired while somebody waited on it."""


class JobSuperseded(JobError):
    """Another driver owns this job, or it was given up for a newer try."""


class ResultInvalid(JobError, ValueError):
    """The result cannot be written as JSON, or is larger than the limit."""
