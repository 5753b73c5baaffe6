"""20,000 topics and 1,000 dialogues by the offline writer, on two workers: seconds, and what was left out.

The whole text half as ``anygpt-synthesize`` runs it, Ray's start included. The bar is five minutes on two cores.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from synthesis.cli import format_reports, run_text
from synthesis.config import DialoguesConfig, ScenariosConfig, SynthesisConfig

DIALOGUES = 1000
WORKERS = 2


def main() -> None:
    """Print the table of the stages, then the figures as one JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        config = SynthesisConfig(
            output=Path(folder),
            workers=WORKERS,
            scenarios=ScenariosConfig(count=DIALOGUES),
            dialogues=DialoguesConfig(count=DIALOGUES),
        )
        begun = time.perf_counter()
        reports = run_text(config)
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        run_text(config)
        again_s = time.perf_counter() - begun
    print(format_reports(reports))
    figures = {"seconds": round(seconds, 1), "again_s": round(again_s, 1)}
    for stage in ("topics", "scenarios", "dialogues"):
        figures[stage] = reports[stage]["written"]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
