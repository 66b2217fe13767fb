"""`paceline serve`: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import os
import warnings
from typing import Annotated, Any

import typer

from paceline.cli import options as opt
from paceline.cli.groups import grouped
from paceline.errors import PacelineWarning, UserError
from paceline.serve.settings import ServerSettings

SERVER = "Server"
KEY_VARIABLE = "PACELINE_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _option(*flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, rich_help_panel=SERVER, **settings)


@grouped
def serve(
    *,
    model_dir: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="As --model.", show_default="the bundled model")
    ] = None,
    host: Annotated[str, _option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = ServerSettings.host,
    port: Annotated[int, _option(help="0 takes a free one.")] = ServerSettings.port,
    api_key: Annotated[
        list[str] | None,
        _option(help="Clients must send it. Repeatable.", show_default=f"the variable {KEY_VARIABLE}, else none"),
    ] = None,
    served_model_name: Annotated[
        list[str] | None, _option(help="What clients call the model. Repeatable.", show_default="as --model says")
    ] = None,
    max_queue: Annotated[
        int, _option(help="Most answers that wait beyond those that run; then 429.")
    ] = ServerSettings.max_queue,
    request_timeout: Annotated[float, _option(help="Seconds a request may take; then 504.")] = ServerSettings.timeout,
    drain_timeout: Annotated[
        float, _option(help="Seconds that open requests get after SIGTERM.")
    ] = ServerSettings.drain,
    chunk_interval: Annotated[
        float, _option(help="Seconds between chunks of a stream, at least: faster steps share one. 0: a chunk a step.")
    ] = ServerSettings.interval,
    max_body_mib: Annotated[
        int, _option("--max-body-mib", help="Largest body of a request; then 413.")
    ] = ServerSettings.max_body_mib,
    no_request_log: Annotated[bool, _option("--no-request-log", help="No line on stderr for each request.")] = False,
    model: opt.ModelChoice,
    drafting: opt.Drafting,
    modules: opt.Modules,
    lookup: opt.Lookup,
    sizes: opt.Sizes,
) -> None:
    """Serve the model over HTTP, as OpenAI's API has it: every request speculated, with the text of plain decoding."""
    if model.model is not None and model_dir is not None:
        raise UserError("MODEL and --model exclude each other; give one of them.")
    opt.refuse_idle_options(drafting, modules, lookup)
    _require_libraries()
    from paceline.checkpoint.resolve import BUNDLED, resolve_model
    from paceline.serve.run import run

    name = model_dir if model.model is None else model.model
    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=_keys(api_key),
        served_names=tuple(served_model_name or [name or BUNDLED]),
        max_queue=max_queue,
        timeout=request_timeout,
        drain=drain_timeout,
        interval=chunk_interval,
        max_body_mib=max_body_mib,
        log_requests=not no_request_log,
        options=opt.given(model) | opt.engine_options(drafting, modules, lookup, sizes),
    )
    if not settings.api_keys and host not in LOOPBACK:
        warnings.warn(f"whoever reaches {host} may use this server; --api-key KEY keeps it closed", PacelineWarning, 2)
    run(resolve_model(name), settings)


def _keys(flags: list[str] | None) -> tuple[str, ...]:
    """Of the flags, else of the variable, which other users of the machine cannot read."""
    variable = os.environ.get(KEY_VARIABLE)
    return tuple(flags or ([variable] if variable else []))


def _require_libraries() -> None:
    try:
        import fastapi
        import prometheus_client
        import uvicorn
    except ImportError as error:
        raise UserError(f"The server needs {error.name}; install it with pip install 'paceline[serve]'.") from None
    del fastapi, prometheus_client, uvicorn
