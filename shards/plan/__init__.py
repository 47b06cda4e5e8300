"""Do these shards feed that many GPUs? What can be said about a training before it starts.

Owns the arithmetic of folders, streams, world sizes, steps, cores and disks, and a verdict on each:
`ok`, `warning` (it runs, but not as meant) or `cannot`; the last two come with a fix. Refuses to
know models and clusters. `python -m shards plan` prints it (`cli.py`), a trainer asks `preflight`.
"""

from __future__ import annotations

from shards.config import DataConfig
from shards.manifest import Manifest
from shards.plan.finding import Demand, Finding, refused
from shards.plan.folders import clips_of, of_folders
from shards.plan.mixing import decoded, of_mixing
from shards.plan.rate import of_speed
from shards.plan.workers import of_workers


def plan(data: DataConfig, demand: Demand, *, seconds: float) -> list[Finding]:
    """Everything that can be said before a training; loads clips for so many seconds."""
    manifests: list[Manifest] = []
    findings: list[Finding] = []
    for folder in data.shards:
        try:
            manifests.append(Manifest.open(folder))
        except ValueError as error:
            findings.append(refused("folder", error))
    if manifests:
        findings += of_folders(manifests, data)
        whole = all(finding.verdict != "cannot" for finding in findings)
        sizes: list[int] = []
        if whole or data.splits is None:
            try:
                sizes = clips_of(manifests, data)
            except ValueError as error:
                findings.append(refused("split file", error))
        findings += of_mixing(manifests, sizes, data, demand)
        demand = decoded(demand, data)
        findings += of_workers(manifests, sizes, data, demand)
        findings += of_speed(manifests, data, demand, seconds=seconds if whole else 0)
    return findings
