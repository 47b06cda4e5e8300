"""Whether a cluster has the cores and GPUs that a job asks for, now and while it waits.

Owns the reading of Ray's nodes. Refuses to know what runs there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.cluster import ClusterConfig


def check_capacity(cluster: ClusterConfig) -> int:
    """How many workers fit, all other jobs aside. Raises ValueError for fewer than the workers of
    the job, where Ray would wait for a node that never comes."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    asked = {kind: each for kind, each in asked.items() if each}
    # A worker lives on one node: cores of a node without a free GPU are none for it.
    room = sum(
        min(int(node.get(kind, 0) // each) for kind, each in asked.items()) for node in nodes
    )
    if room >= cluster.workers:
        return room
    need = " and ".join(f"{each} {kind}" for kind, each in asked.items())
    has = " and ".join(f"{sum(int(n.get(kind, 0)) for n in nodes)} {kind}s" for kind in asked)
    less = " or ".join(f"less --cluster.{kind.lower()}s_per_worker" for kind in asked)
    raise ValueError(
        f"{cluster.workers} workers of {need} each do not fit: the cluster has {has} on "
        f"{len(nodes)} nodes, room for {room} workers. Use "
        f"{f'--cluster.workers {room} or {less}' if room else less}, or add nodes "
        "(ray start --address ...)"
    )


@contextlib.contextmanager
def telling_of_shortage(cluster: ClusterConfig, *, every: float = 20.0) -> Iterator[None]:
    """Say so when nodes are gone and the workers no longer fit: Ray waits for ever, in silence."""
    ended = threading.Event()

    def watch() -> None:
        short = False
        while not ended.wait(every):
            try:
                check_capacity(cluster)
                short = False
            except ValueError as error:
                if not short:
                    print(f"waiting until all workers fit: {error}", flush=True)
                short = True

    threading.Thread(target=watch, name="capacity", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def free_room(*, patience: float = 1.0) -> None:
    """Give back what this job's ended runs of Ray Train still hold, `patience` seconds after.

    Ray Train 2.60 forgets the reservation of workers one of which fails while their functions are
    being started; it would last as long as the job, which may need it for the next start.
    """
    import ray
    from ray._private.state import state  # no public call tells who made a reservation
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    Group: Any = gcs_pb2.PlacementGroupTableData  # pyright: ignore[reportAttributeAccessIssue]
    time.sleep(patience)  # Ray ends their controllers in the background
    job = ray.get_runtime_context().get_job_id()
    for found in state._connect_and_get_accessor().get_placement_group_table():
        group = Group.FromString(found)
        ours = group.creator_job_id.hex() == job and group.creator_actor_dead
        if ours and group.state != Group.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
