"""Whether a cluster has the cores and GPUs that a job asks for, now and while it waits.

Owns the reading of Ray's nodes. Refuses to know what runs there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

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


def free_room() -> None:
    """Give back what is reserved for workers, in a cluster that runs nothing else.

    Ray Train forgets the reservation of workers of which one died as its function was being
    started; elsewhere Ray's dashboard sees to it after a while.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    for identity, group in ray.util.placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))
