"""Probe a frozen encoder: `python launch/probe.py --model ENCODER --shards DIR …`."""

import sys
from pathlib import Path

# Python puts this file's folder first on the path, where `import finetune` would find a script.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(p for p in sys.path if p and Path(p).resolve() != _HERE)]

from finetune.probes.driver import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
