"""The operator's process: options, kopf's start-up and login, liveness, metrics; nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated

import aiohttp
import kopf
import typer
from prometheus_client import REGISTRY, start_http_server

from bitnet_operator import handlers, health
from bitnet_operator.api import ApiError, connect
from bitnet_operator.cluster import Cluster
from bitnet_operator.decide import Settings
from bitnet_operator.metrics import RunMetrics
from bitnet_operator.observation import Key
from bitnet_operator.queue import WorkQueue
from bitnet_operator.reconcile import reconcile

log = logging.getLogger(__name__)

RESYNC_SECONDS = 300.0
"""Between two lists of all runs, which find what no event told of."""
PASSING_SECONDS = 1.0
"""Until a run is looked at again that changed while it was decided on, or that goes with its namespace."""


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def operate(
    trainer_image: Annotated[
        str, typer.Option(envvar="BITNET_TRAINER_IMAGE", help="Image of the pods that train.")
    ],
    namespace: Annotated[
        list[str] | None, typer.Option(help="Namespace to watch; may be given more than once. Default: all.")
    ] = None,
    progress_interval: Annotated[
        float, typer.Option(envvar="BITNET_PROGRESS_INTERVAL", help="Seconds between two looks at a run.")
    ] = 15.0,
    first_retry_delay: Annotated[
        float,
        typer.Option(envvar="BITNET_FIRST_RETRY_DELAY", help="Seconds before the first retry; doubles."),
    ] = 10.0,
    metrics_port: Annotated[int, typer.Option(envvar="BITNET_METRICS_PORT", help="Serves /metrics.")] = 9090,
    health_port: Annotated[int, typer.Option(envvar="BITNET_HEALTH_PORT", help="Serves /healthz.")] = 8080,
) -> None:
    """Watches BitNetRuns and trains them."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    metrics = RunMetrics()
    REGISTRY.register(metrics)
    try:
        start_http_server(metrics_port)
    except OSError as error:
        raise typer.BadParameter(
            f"port {metrics_port}: {error.strerror}", param_hint="--metrics-port"
        ) from None
    settings = Settings(progress_interval=progress_interval, first_retry_delay=first_retry_delay)
    try:
        asyncio.run(_operate(trainer_image, namespace or [], settings, metrics, health_port))
    except ApiError as error:
        typer.echo(f"bitnet-operator: {error}", err=True)
        raise typer.Exit(1) from None


async def _operate(
    trainer_image: str, namespaces: list[str], settings: Settings, metrics: RunMetrics, health_port: int
) -> None:
    liveness = health.Liveness(limit_seconds=3 * RESYNC_SECONDS)
    async with (
        _healthz(liveness, health_port),
        connect() as api,
        aiohttp.ClientSession() as http,
        asyncio.TaskGroup() as group,
    ):
        cluster = Cluster(api, http, trainer_image, metrics)

        async def work(key: Key) -> float | None:
            try:
                return await reconcile(cluster, key, datetime.now(UTC), settings)
            except ApiError as error:
                if not error.passing:
                    raise
                log.info("%s is looked at again: %s", key, error)
                return PASSING_SECONDS

        queue: WorkQueue[Key] = WorkQueue(work)
        own = [
            group.create_task(queue.run()),
            group.create_task(_resync(cluster, namespaces, queue, liveness)),
        ]
        registry = kopf.OperatorRegistry()
        handlers.register(registry, queue)
        await kopf.operator(
            registry=registry,
            settings=handlers.kopf_settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
        )
        for task in own:
            task.cancel()


@asynccontextmanager
async def _healthz(liveness: health.Liveness, port: int) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(health.serve(liveness, port))
        except OSError as error:
            raise typer.BadParameter(f"port {port}: {error.strerror}", param_hint="--health-port") from None
        yield


async def _resync(
    cluster: Cluster, namespaces: list[str], queue: WorkQueue[Key], liveness: health.Liveness
) -> None:
    while True:
        try:
            for key in await cluster.keys(namespaces):
                queue.wake(key)
        except ApiError as error:
            log.warning("could not list the runs: %s; tried again in %.0f s", error, RESYNC_SECONDS)
        else:
            liveness.saw()
        await asyncio.sleep(RESYNC_SECONDS)


def main() -> None:
    """Entry point of `bitnet-operator`."""
    app()


if __name__ == "__main__":
    main()
