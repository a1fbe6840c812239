"""Where the real data of tests lie."""

import os
from pathlib import Path

REAL_DATA = Path(os.environ.get("TIMELOOM_DATA", Path(__file__).parents[3] / "shared" / "data"))
"""$TIMELOOM_DATA, else ../shared/data beside the repository. Tests skip where it is no folder."""
