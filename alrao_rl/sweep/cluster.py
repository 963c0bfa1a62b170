"""Dask clusters: workers on this machine, or the user's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from alrao_rl.errors import UserError, first_line

if TYPE_CHECKING:
    pass


ALLOWED_DEATHS = 10
"""A run fails after more local workers than this have died during it; a user's cluster has its own setting."""
CONNECT_TIMEOUT = 5
"""Seconds to wait for a scheduler."""


class SchedulerGoneError(Exception):
    """The user's cluster has ended before the sweep."""

    def __init__(self) -> None:
        super().__init__("the scheduler is gone; the same command continues, each run from its last checkpoint")


@contextlib.contextmanager
def local_cluster(n_workers: int) -> Iterator[Any]:
    """Workers on this machine, reachable from it only; one that is killed is replaced.

    Yields:
        A ``distributed.Client``.
    """
    import logging
    import tempfile

    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.scheduler.worker-saturation": 1.0,  # runs are long: no worker may hold one for later
        "distributed.worker.daemon": True,
        # A worker only waits. By default Dask makes it inspect its stack 100 times a second, and its clock 50 times.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        "distributed.comm.timeouts.connect": "30s",
    }
    with (
        tempfile.TemporaryDirectory(prefix="alrao-sweep-", ignore_cleanup_errors=True) as scratch,
        dask.config.set(settings),
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=None,
            silence_logs=logging.CRITICAL, local_directory=scratch, preload=["alrao_rl.sweep.worker"],
            # Even without a dashboard there is a metrics server; on a free port, or a second sweep would complain.
            dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """The user's cluster.

    Yields:
        A ``distributed.Client``.

    Raises:
        UserError: if no scheduler answers within a few seconds.
    """
    import logging

    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    with silence_logging_cmgr(logging.CRITICAL):
        try:
            client = Client(address, timeout=CONNECT_TIMEOUT)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            expected = "one such as tcp://HOST:8786"
            if address.startswith("tls:"):
                expected = (
                    "one that knows the certificate DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT, see docs/sweeps.md"
                )
            raise UserError(
                f"no Dask scheduler answers at --scheduler {address}, expected {expected} ({first_line(error)})"
            ) from None
        with client:
            yield client


def give_out(client: Any, function: Callable[[Any], Any], tasks: Sequence[Any], name: str) -> list[Any]:
    """A future for ``function`` of each task, started in their order, each by the next free worker.

    All are submitted at once: one by one, the scheduler would give every worker two before it sees that there are more,
    and the third would wait behind the first, however long that takes. Two or fewer per worker it still assigns early.
    """
    # Dask repeats nothing: a task raises nothing, and handles its failures itself.
    futures: list[Any] = client.map(function, tasks, key=[(name, n) for n in range(len(tasks))], pure=False, retries=0)
    return futures
