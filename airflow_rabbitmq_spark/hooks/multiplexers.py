"""The multiplexer of an Airflow connection: what all waits of an event loop on that connection share."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

from airflow_rabbitmq_spark.amqp.multiplexer import Multiplexer, shared
from airflow_rabbitmq_spark.amqp.per_loop import PerLoop

if TYPE_CHECKING:
    from airflow_rabbitmq_spark.hooks.rabbitmq import RabbitMQHook

#: Seconds for which a wait that starts takes the connection as another has just read it.
CONNECTION_AGE = 5.0

#: By connection id: when Airflow was asked, and what came of it or is about to.
_multiplexers: PerLoop[str, tuple[float, Multiplexer | asyncio.Future[Multiplexer]]] = PerLoop()


async def multiplexer_of(hook: RabbitMQHook) -> Multiplexer:
    """As of :meth:`RabbitMQHook.amultiplexer`.

    Waits that start together, ten thousand of them when a triggerer starts, ask Airflow for the connection once; it is
    asked again for those that start :data:`CONNECTION_AGE` seconds later.
    """
    loop, conn_id = asyncio.get_running_loop(), hook.rabbitmq_conn_id
    of_loop = _multiplexers.get()
    asked_at, multiplexer = of_loop.get(conn_id, (-CONNECTION_AGE, None))
    if multiplexer is not None and loop.time() - asked_at < CONNECTION_AGE:
        return multiplexer if not isinstance(multiplexer, asyncio.Future) else await asyncio.shield(multiplexer)

    async def ask() -> Multiplexer:
        return shared(await hook.aendpoint())

    def keep(asked: asyncio.Future[Multiplexer]) -> None:
        if asked.cancelled() or asked.exception() is not None:
            of_loop.pop(conn_id, None)
        else:
            of_loop[conn_id] = (loop.time(), asked.result())

    # A task of its own: others wait for it too, and the wait that happens to be the first may be cancelled. In an empty
    # context, so that it does not log as that one.
    asking = contextvars.Context().run(loop.create_task, ask())
    of_loop[conn_id] = (loop.time(), asking)
    asking.add_done_callback(keep)
    return await asyncio.shield(asking)
