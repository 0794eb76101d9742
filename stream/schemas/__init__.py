"""Schemas of what others meet: the HTTP API (OpenAPI 3.1), served at ``/openapi.json``."""

from pathlib import Path
from typing import Final

OPENAPI: Final = Path(__file__).with_name("openapi.json")
