"""Who shows what, in which session and which split: decided before a pixel is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shards.render.expression import LABELS


class RenderError(ValueError):
    """A request that cannot be rendered; the message says what to change."""


@dataclass(frozen=True)
class PlannedClip:
    """One planned row: seeds for the pixels and fields for the annotation."""

    path: str
    label: str
    strength: float
    subject: int
    face_seed: int
    session_seed: int
    clip_seed: int
    split: str

    @property
    def subject_id(self) -> str:
        return f"s{self.subject:03d}"


def assign_splits(subjects: int, shares: Mapping[str, float], seed: int) -> list[str]:
    """A split for every subject, by largest remainder, none left empty."""
    if not shares or min(shares.values()) <= 0:
        raise RenderError(f"splits need positive shares, got {dict(shares)}")
    if subjects < len(shares):
        raise RenderError(
            f"{len(shares)} subject-disjoint splits ({', '.join(shares)}) need at least "
            f"{len(shares)} subjects, got {subjects}; raise --subjects or name fewer --splits"
        )
    total = sum(shares.values())
    exact = {name: share / total * subjects for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(shares, key=lambda name: counts[name] - exact[name])
    for name in by_rest[: subjects - sum(counts.values())]:
        counts[name] += 1
    for name in shares:
        if counts[name] == 0:
            counts[max(counts, key=lambda other: counts[other])] -= 1
            counts[name] = 1
    names = [name for name, count in counts.items() for _ in range(count)]
    order = np.random.default_rng([0x5B117, seed]).permutation(subjects)
    assigned = [""] * subjects
    for name, subject in zip(names, order, strict=True):
        assigned[subject] = name
    return assigned


def plan_clips(
    subjects: int, clips: int, seed: int, strengths: Sequence[float], split_of: list[str]
) -> list[PlannedClip]:
    """The whole set in order: labels cycle within a subject, strengths over subjects and labels."""
    plan = []
    for subject in range(subjects):
        face_seed = _derive(seed, 1, subject)
        # Labels cycle: numbered in their order, the names of the files would tell them.
        numbers = np.random.default_rng(_derive(seed, 4, subject)).permutation(clips)
        for index in range(clips):
            which = (index + subject * clips) % len(LABELS)
            session = index // len(LABELS)
            name = f"s{subject:03d}"
            plan.append(
                PlannedClip(
                    path=f"{name}/{name}_{numbers[index]:03d}.mp4",
                    label=LABELS[which],
                    strength=float(strengths[(session + subject + which) % len(strengths)]),
                    subject=subject,
                    face_seed=face_seed,
                    session_seed=_derive(seed, 2, subject, session),
                    clip_seed=_derive(seed, 3, subject, index),
                    split=split_of[subject],
                )
            )
    return plan


def _derive(seed: int, *path: int) -> int:
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])
