"""The operator's process: options, kopf's start-up and login, liveness, metrics; nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import aiohttp
import kopf
import typer
from prometheus_client import REGISTRY, start_http_server

from bitnet_operator import handlers, health
from bitnet_operator.api import ApiError, connect
from bitnet_operator.cluster import Cluster
from bitnet_operator.decide import Settings
from bitnet_operator.leader import Leadership, NotLeadingError, own_identity, own_namespace
from bitnet_operator.metrics import LEADER, RunMetrics
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
    leader_election: Annotated[
        bool, typer.Option(help="Act only while holding the lease, so that several replicas may run.")
    ] = True,
    lease_namespace: Annotated[
        str | None, typer.Option(envvar="BITNET_LEASE_NAMESPACE", help="Default: the pod's own.")
    ] = None,
    lease_name: Annotated[
        str, typer.Option(envvar="BITNET_LEASE_NAME", help="The lease that all replicas share.")
    ] = "bitnet-operator",
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
    lease: tuple[str, str] | None = None
    if leader_election:
        held_in = lease_namespace or own_namespace()
        if held_in is None:
            raise typer.BadParameter(
                "outside a pod, name the lease's namespace, or write --no-leader-election",
                param_hint="--lease-namespace",
            )
        lease = (held_in, lease_name)
    try:
        asyncio.run(_operate(trainer_image, namespace or [], settings, metrics, health_port, lease))
    except (ApiError, NotLeadingError) as error:
        typer.echo(f"bitnet-operator: {error}", err=True)
        raise typer.Exit(1) from None


async def _operate(
    trainer_image: str,
    namespaces: list[str],
    settings: Settings,
    metrics: RunMetrics,
    health_port: int,
    lease: tuple[str, str] | None,
) -> None:
    liveness = health.Liveness(limit_seconds=3 * RESYNC_SECONDS)
    async with _healthz(liveness, health_port), connect() as api, aiohttp.ClientSession() as http:
        leadership = None if lease is None else Leadership(api, *lease, own_identity(), liveness.saw)
        cluster = Cluster(
            api if leadership is None else api.fenced(leadership.remaining), http, trainer_image, metrics
        )
        queue: WorkQueue[Key] = WorkQueue(partial(_work, cluster, settings))
        registry = kopf.OperatorRegistry()
        handlers.register(registry, queue)
        lost = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            # kopf runs in a standby too: its events merely wake keys of a queue that only the leader works.
            resync = partial(_resync, cluster, namespaces, queue, liveness)
            leading = group.create_task(_lead(leadership, liveness, lost, queue.run, resync))
            await kopf.operator(
                registry=registry,
                settings=handlers.kopf_settings(),
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
                stop_flag=lost,
            )
            leading.cancel()
        if lost.is_set():
            # A new process begins from what the cluster says, and stands by.
            raise NotLeadingError("the lease was lost: this replica ends, another leads")
        if leadership is not None:
            await leadership.release()


async def _lead(
    leadership: Leadership | None,
    liveness: health.Liveness,
    lost: asyncio.Event,
    *work: Callable[[], Coroutine[None, None, None]],
) -> None:
    """Does the work for as long as this replica leads. Sets `lost` once it leads no more."""
    if leadership is not None:
        liveness.role = "standby"
        await leadership.gain()
    liveness.role = "leader"
    LEADER.set(1)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each()) for each in work]
            if leadership is not None:
                await leadership.keep()
                for task in tasks:
                    task.cancel()
    finally:
        liveness.role = "ending"
        LEADER.set(0)
    lost.set()


async def _work(cluster: Cluster, settings: Settings, key: Key) -> float | None:
    try:
        return await reconcile(cluster, key, datetime.now(UTC), settings)
    except NotLeadingError as error:
        log.info("%s is left to another replica: %s", key, error)
        return None
    except ApiError as error:
        if not error.passing:
            raise
        log.info("%s is looked at again: %s", key, error)
        return PASSING_SECONDS


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
