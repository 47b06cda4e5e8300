"""`python -m shards COMMAND`: one of `USAGE`. Loads only what the command needs."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

USAGE = """usage: python -m shards COMMAND …

  ingest VIDEOS --out DIR [--annotations CSV]   videos to shards of face clips
  ingest --dataset NAME --root DIR --out DIR    a public data set, in its own layout
  ingest VIDEOS --out DIR --redo LEDGER         make anew what a training could not read
  datasets [NAME]                               which there are, and where to ask for them
  verify DIR                                    is every shard whole and unchanged?
  stats DIR                                     what is in it
  plan DIR … [--gpus 64]                        do they feed that many GPUs?
  preview DIR [--out preview.html]              a page of thumbnails, and what was rejected
  render --out DIR                              labelled videos of rendered faces

python -m shards COMMAND --help explains a command."""


def main(argv: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of folders need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    command, rest = argv[0], list(argv[1:])
    if command == "ingest":
        from shards.ingest.cli import main as run
    elif command == "datasets":
        from shards.datasets.cli import main as run
    elif command == "render":
        from shards.render.cli import main as run
    elif command == "plan":
        from shards.plan.cli import main as run
    elif command == "preview":
        from shards.preview import main as run
    elif command in ("verify", "stats"):
        from shards.ingest.inspect import main as inspect

        return inspect(command, rest)
    else:
        print(f"shards: no command {command!r}\n{USAGE}", file=sys.stderr)
        return 2
    return run(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
