"""Schemas of what others meet: the HTTP API (OpenAPI 3.1), the topics (AsyncAPI 3, JSON Schema).

``openapi.json`` is served at ``/openapi.json``. ``asyncapi.json`` names the schema of each topic's
records, a file beside it.
"""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
OPENAPI: Final = FOLDER / "openapi.json"
ASYNCAPI: Final = FOLDER / "asyncapi.json"
