"""Judge a recipe by a protocol: `python launch/study.py RECIPE --protocol loso --data.shards DIR`.

The same line runs on a laptop and, after `ray job submit --working-dir . --`, on a cluster.
"""

import sys
from pathlib import Path

# Python puts this file's folder first on the path, where `import finetune` would find a script.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(p for p in sys.path if p and Path(p).resolve() != _HERE)]

from finetune.study.driver import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
