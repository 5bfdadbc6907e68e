"""The operator's process: options, kopf's start-up and login, liveness, metrics; nothing else."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import kopf
import typer
from prometheus_client import REGISTRY, disable_created_metrics, start_http_server

from bitnet_operator import handlers, health
from bitnet_operator.api import ApiError, connect
from bitnet_operator.case import Settings
from bitnet_operator.cluster import Cluster
from bitnet_operator.leader import Leadership, NotLeadingError, own_identity, pod_namespace
from bitnet_operator.metrics import ReplicaMetrics, RunMetrics
from bitnet_operator.observation import Key
from bitnet_operator.queue import WorkQueue
from bitnet_operator.reconcile import reconcile
from bitnet_operator.webhook import WebhookOptions, serving

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
    lease_name: Annotated[
        str, typer.Option(envvar="BITNET_LEASE_NAME", help="The lease that all replicas share.")
    ] = "bitnet-operator",
    own_namespace: Annotated[
        str | None,
        typer.Option(
            envvar="BITNET_OWN_NAMESPACE",
            help="Where the lease and the webhook's Secret are. Default: the pod's namespace.",
        ),
    ] = None,
    webhook_name: Annotated[
        str | None,
        typer.Option(
            envvar="BITNET_WEBHOOK_NAME",
            help="Serves admission. Service, Secret and ValidatingWebhookConfiguration have this name.",
        ),
    ] = None,
    webhook_port: Annotated[
        int, typer.Option(envvar="BITNET_WEBHOOK_PORT", help="Serves admission, with --webhook-name.")
    ] = 9443,
    webhook_certificates: Annotated[
        Path | None,
        typer.Option(
            envvar="BITNET_WEBHOOK_CERTIFICATES",
            help="Folder with tls.crt and tls.key. Default: the operator makes its own.",
        ),
    ] = None,
) -> None:
    """Watches BitNetRuns and trains them."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    home = own_namespace or pod_namespace()
    if home is None and (leader_election or webhook_name is not None):
        raise typer.BadParameter(
            "outside a pod, name the namespace of the lease and of the webhook's Secret, or write "
            "--no-leader-election and no --webhook-name",
            param_hint="--own-namespace",
        )
    # When a counter began is nothing that anybody asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics, own = RunMetrics(), ReplicaMetrics()
    REGISTRY.register(metrics)
    try:
        start_http_server(metrics_port)
    except OSError as error:
        raise typer.BadParameter(
            f"port {metrics_port}: {error.strerror}", param_hint="--metrics-port"
        ) from None
    options = _Options(
        trainer_image=trainer_image,
        namespaces=tuple(namespace or ()),
        settings=Settings(progress_interval=progress_interval, first_retry_delay=first_retry_delay),
        health_port=health_port,
        lease=(home, lease_name) if home and leader_election else None,
        webhook=WebhookOptions(home, webhook_name, webhook_port, webhook_certificates)
        if home and webhook_name
        else None,
    )
    try:
        asyncio.run(_operate(options, metrics, own))
    except (ApiError, NotLeadingError) as error:
        typer.echo(f"bitnet-operator: {error}", err=True)
        raise typer.Exit(1) from None


@dataclass(frozen=True)
class _Options:
    """What the command line asks for."""

    trainer_image: str
    namespaces: tuple[str, ...]
    """Empty for all."""
    settings: Settings
    health_port: int
    lease: tuple[str, str] | None
    """Namespace and name; None without leader election."""
    webhook: WebhookOptions | None


async def _operate(options: _Options, metrics: RunMetrics, own: ReplicaMetrics) -> None:
    liveness, over = health.Liveness(limit_seconds=3 * RESYNC_SECONDS), asyncio.Event()
    async with (
        _healthz(liveness, options.health_port),
        connect() as api,
        aiohttp.ClientSession() as http,
        AsyncExitStack() as stack,
    ):

        def saw() -> None:
            liveness.saw()
            own.saw()

        leadership, fenced = None, api
        if options.lease is not None:
            leadership = Leadership(api, *options.lease, own_identity(), saw)
            fenced = api.fenced(leadership.remaining)
        cluster = Cluster(fenced, http, options.trainer_image, metrics)
        queue: WorkQueue[Key] = WorkQueue(partial(_work, cluster, options.settings), observer=own)
        own.measures(queue.length)
        registry, settings = kopf.OperatorRegistry(), handlers.kopf_settings()
        handlers.register(registry, queue)
        if options.webhook is not None:
            await stack.enter_async_context(serving(options.webhook, api, registry, settings))
        async with asyncio.TaskGroup() as group:
            resync = partial(_resync, cluster, options.namespaces, queue, saw)
            leading = group.create_task(_lead(leadership, liveness, own, over, queue.run, resync))

            # Before kopf ends: it would wait five seconds for tasks that go on, of ours and of its own that
            # waits for the flag.
            @kopf.on.cleanup(registry=registry)
            async def stop(**_: Any) -> None:
                leading.cancel()
                await asyncio.wait([leading])
                over.set()
                if leadership is not None:
                    await leadership.release()

            # kopf runs in a standby too: its events merely wake keys of a queue that only the leader works.
            await kopf.operator(
                registry=registry,
                settings=settings,
                standalone=True,
                # kopf would ask for the user's name, and the image's user has none.
                identity=own_identity(),  # type: ignore[arg-type]  # a NewType that kopf keeps to itself
                clusterwide=not options.namespaces,
                namespaces=options.namespaces,
                stop_flag=over,
            )
    if not leading.cancelled():
        # A new process begins from what the cluster says, and stands by.
        raise NotLeadingError("the lease was lost: this replica ends, another leads")


async def _lead(
    leadership: Leadership | None,
    liveness: health.Liveness,
    own: ReplicaMetrics,
    over: asyncio.Event,
    *work: Callable[[], Coroutine[None, None, None]],
) -> None:
    """Does the work for as long as this replica leads. Sets `over` once it leads no more."""
    if leadership is not None:
        liveness.role = "standby"
        await leadership.gain()
    liveness.role = "leader"
    own.leads(True)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each()) for each in work]
            if leadership is not None:
                await leadership.keep()
                for task in tasks:
                    task.cancel()
    finally:
        liveness.role = "ending"
        own.leads(False)
    over.set()


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
    cluster: Cluster, namespaces: tuple[str, ...], queue: WorkQueue[Key], saw: Callable[[], None]
) -> None:
    while True:
        try:
            for key in await cluster.keys(namespaces):
                queue.wake(key)
        except ApiError as error:
            log.warning("could not list the runs: %s; tried again in %.0f s", error, RESYNC_SECONDS)
        else:
            saw()
        await asyncio.sleep(RESYNC_SECONDS)


def main() -> None:
    """Entry point of `bitnet-operator`."""
    app()


if __name__ == "__main__":
    main()
