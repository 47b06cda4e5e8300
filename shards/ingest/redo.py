"""`ingest --redo LEDGER`: samples that a training could not read, made anew from their videos.

The shards that hold them are written anew (`torn` says which, `remake` does it), with the settings
of the folder and in the order they had; all other files are linked into the new folder as they are.
It replaces the old one when it is complete, so a run that is killed leaves the old one valid, and
the same command goes on. Owns this request. Refuses to change what is known of a clip: other
annotations make another folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from shards.ingest.inputs import Collected, InputError, Refused
from shards.ingest.models import with_model
from shards.ingest.publish import mend, publish, written_aside
from shards.ingest.remake import Remake
from shards.ingest.request import Listing, listing, request_of, versions
from shards.ingest.run import Progress, check_loads, made_of
from shards.ingest.settings import IngestSettings
from shards.ingest.torn import Torn, Videos, torn
from shards.ledger import Named, read_named
from shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Redone:
    """What a run made."""

    out: Path
    shards: int
    """Written anew."""
    same: int
    """Of these, with the bytes that they had when they were first written."""
    clips: int
    """Made anew."""
    rejected: tuple[Refused, ...]
    """Those that could not be, now left out."""
    notes: tuple[str, ...]


def settings_of(out: Path, given: Mapping[str, Any]) -> IngestSettings:
    """The settings that a folder was written with.

    Raises ManifestError where `out` is no shard folder, InputError where others are `given`.
    """
    mend(out.resolve())
    clip = Manifest.open(out).clip
    before = IngestSettings(
        **{f.name: clip[f.name] for f in fields(IngestSettings) if f.name in clip}
    )
    settings = replace(before, **given)
    for name in given.keys() - {"detector_model"}:
        if (old := getattr(before, name)) != (new := getattr(settings, name)):
            raise InputError(
                f"{out} was written with {name} {old or 'none'}, not {new}; leave it out with "
                "--redo, or ingest into a new folder"
            )
    return settings


def redo(
    videos: str | Path,
    out: str | Path,
    ledgers: Sequence[str],
    *,
    settings: IngestSettings,
    annotations: str | Path | None = None,
    collected: Collected | None = None,
    holdout: Mapping[str, float] | None = None,
    jobs: int | None = None,
    restart: bool = False,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Redone:
    """Writes the shards of `out` anew in which ledgers name samples; `settings` by `settings_of`.

    The rest is as for `ingest`, and what was given when the folder was written. Raises InputError
    for what is wrong with the request, ManifestError where `out` is no shard folder, ValueError
    where a ledger is none, IngestError if nothing would be left, OSError where the disk is full.
    Whatever is raised, KeyboardInterrupt included, `out` stays as it was.
    """
    settings = with_model(settings)
    check_loads(settings)
    out = Path(out).resolve()
    mend(out)
    manifest, named = Manifest.open(out), read_named(ledgers, asked="--redo")
    listed = listing(Path(videos), annotations, collected, holdout or {})
    listed, _, _ = request_of(listed, settings, samples=0, size=0)  # those that are there
    known = Videos(listed.items)
    plan = list(torn(out, manifest, named, known))
    _check(out, manifest, plan, named)
    request = _request(manifest, plan, listed, settings)
    size = sum(manifest.shards[t.number].bytes for t in plan)
    with written_aside(out, request, overwrite=True, restart=restart, expected=size) as aside:
        before = len(aside.journal.finished)
        todo = plan[before:]
        items = [listed.items[number] for t in todo for number in t.videos]
        made = made_of(items, aside.work, settings, start=0, jobs=jobs, ray=ray)
        remake = Remake(out, manifest, listed.items, known, settings, aside)
        remake.write(todo, made, progress)
        written = remake.complete(plan)
        found = _summary(out, manifest, written, plan, remake, named, before)
        publish(aside.shards, out)
        remake.sweep()
    return found


def _check(out: Path, manifest: Manifest, plan: Sequence[Torn], named: Mapping[str, Named]) -> None:
    """InputError where there is nothing to make anew, or nothing to make it from."""
    if not named.keys() & {shard.sha256 for shard in manifest.shards}:
        raise InputError(
            f"the ledger names no shard of {out}: it is about another folder, or they were written "
            "anew already"
        )
    if not plan:
        raise InputError(
            f"nothing to do: the shards of {out} that the ledger calls lost are whole here; copy "
            "them there again"
        )
    wanted = sorted(key for t in plan for key in t.keys)
    if wanted and not any(t.videos for t in plan):
        raise InputError(
            f"none of the videos of {len(wanted)} samples, such as {wanted[0]}, is there; name the "
            "videos (and --annotations or --dataset) that the folder was written from"
        )


def _request(
    manifest: Manifest, plan: Sequence[Torn], listed: Listing, settings: IngestSettings
) -> dict[str, Any]:
    """What tells this run from another."""
    numbers = sorted({number for t in plan for number in t.videos})
    wanted = replace(listed, items=[listed.items[n] for n in numbers], refused=())
    _, request, _ = request_of(wanted, settings, samples=0, size=0)
    what = [[t.number, t.whole, sorted(t.keys)] for t in plan]
    return request | {"redo": {"manifest": manifest.sha256, "samples": what}}


def _summary(
    out: Path,
    manifest: Manifest,
    written: Manifest,
    plan: Sequence[Torn],
    remake: Remake,
    named: Mapping[str, Named],
    before: int,
) -> Redone:
    pairs = zip(plan, remake.finished, strict=True)
    notes = [*_notes(manifest, written, named)]
    notes += [f"went on after {before} shards of a run that was stopped"] * bool(before)
    return Redone(
        out=out,
        shards=len(plan),
        same=sum(manifest.shards[t.number].sha256 == shard.sha256 for t, shard in pairs),
        clips=remake.clips,
        rejected=tuple(remake.refused()),
        notes=tuple(notes),
    )


def _notes(manifest: Manifest, written: Manifest, named: Mapping[str, Named]) -> Iterator[str]:
    yield (
        "for this folder the ledger is done: do not give it as data.skip, which would leave out "
        "clips that came back with the same bytes"
    )
    if written.sha256 != manifest.sha256:
        yield (
            "the folder's manifest changed: a training with checkpoints from before does not go on "
            "with it; start it with a new --cluster.output, or, if files were only damaged, copy "
            "sound ones back, manifest.json with them"
        )
    if others := named.keys() - {shard.sha256 for shard in manifest.shards}:
        yield f"{len(others)} shards that the ledgers name are not, or no more, in this folder"
    now = versions()
    if changed := [f"{n} {v}" for n, v in now.items() if manifest.created_by.get(n) != v]:
        yield f"the rest of the folder was written by other versions than {', '.join(changed)}"
