"""The routes an operator asks: alive, ready, which version, how busy.

`/healthz` says that the process answers, `/readyz` that a request would be. Not OpenAI's.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api_errors import ApiError
from server.keys.limits import NO_LIMITS
from server.openai.request.translate import Tenant
from server.services import Services
from server.version import version

router = APIRouter(tags=["operation"])


def services(request: Request) -> Services:
    """The app's live parts, for routes."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


def tenant(request: Request, live: Services) -> Tenant:
    """Who asks: one API key, or everybody."""
    digest = getattr(request.state, "key_digest", "")
    account = live.keys.account(digest)
    shared = live.settings.prompt_store_shared
    return Tenant("" if shared else digest, account.limits if account else NO_LIMITS)


Live = Annotated[Services, Depends(services)]


@router.get("/healthz")
@router.get("/health", include_in_schema=False)  # its names elsewhere
@router.get("/ping", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """The process is alive, whatever the engine does."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(live: Live) -> dict[str, str]:
    """200 when the model is loaded and its worker answers, else 503."""
    if live.ready:
        return {"status": "ready", "model": live.model}
    booting = live.booting
    if booting is not None and booting.done() and not booting.cancelled() and booting.exception():
        raise ApiError("engine_unavailable", f"The model did not load: {booting.exception()}")
    raise ApiError("engine_unavailable", live.engine.condition)


@router.get("/version")
async def get_version(live: Live) -> dict[str, str]:
    """The release, and what it serves."""
    return {"version": version(), "model": live.model}


@router.get("/metrics", response_class=Response)
async def metrics(live: Live) -> Response:
    """Prometheus' text format."""
    return Response(await live.scrapes.read(), media_type=CONTENT_TYPE_LATEST)
