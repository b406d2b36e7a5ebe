"""HTTP: an engine as a service that OpenAI's clients can use as it is.

One thread or process makes the engine's steps; the rest is one asyncio loop, which neither computes
nor waits for what does. May import: FastAPI, uvicorn, `serve` without its torch, and in `traces`
alone OpenTelemetry.
"""

from typing import TYPE_CHECKING

from alpage.lazy import lazy_names

if TYPE_CHECKING:
    from alpage.serve.http.app import make_app
    from alpage.serve.http.engine_process import EngineProcess
    from alpage.serve.http.engine_thread import EngineThread
    from alpage.serve.http.listening import bound, listen
    from alpage.serve.http.service import Service
    from alpage.serve.http.settings import Settings

__all__ = ["EngineProcess", "EngineThread", "Service", "Settings", "bound", "listen", "make_app"]

__getattr__ = lazy_names(
    __name__,
    {
        "EngineProcess": "engine_process",
        "EngineThread": "engine_thread",
        "Service": "service",
        "Settings": "settings",
        "bound": "listening",
        "listen": "listening",
        "make_app": "app",
    },
)
