"""Markitdown over the files named on standard input, in an environment of its own: a line of JSON for each."""

from __future__ import annotations

import json
import sys
import time

from markitdown import MarkItDown

reader = MarkItDown(enable_plugins=False)
for line in sys.stdin:
    path = line.strip()
    start = time.process_time()
    try:
        said = {"text": reader.convert(path).text_content}
    except Exception as error:  # noqa: BLE001 - whatever its readers raise is its answer
        said = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps({"seconds": time.process_time() - start} | said), flush=True)
