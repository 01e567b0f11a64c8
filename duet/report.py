"""`duet report`: one HTML page with a run's plots and recordings."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from common.errors import InputError
from duet.options import Run
from observability.report.audio import ReportAudio
from observability.report.html import build_report
from observability.report.server import CurrentReport, ReportServer
from observability.report.source import ReportSource

app = typer.Typer()


@app.command()
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file of the page", show_default="RUN/report.html")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="serve the page, always current, until Ctrl-C instead of writing it")
    ] = False,
    host: Annotated[str, typer.Option(help="address to serve on; the default is reachable from this machine only")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to serve on; 0 takes a free one")] = 0,
) -> Path | None:
    """Write or serve an HTML page with a run's plots and recordings.

    The page is one file and needs no network. The run may still be in progress.
    """
    source = ReportSource.open(run)
    if serve:
        serve_report(source, host, port)
        return None
    path = write(source, out or source.directory / "report.html")
    print(f"{path}  ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def write(source: ReportSource, path: Path) -> Path:
    """Write the page atomically and return its path."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(build_report(source, ReportAudio.of(source.config, source.world.vocabulary)), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written: {error}; name a file in a writable directory") from error
    return path


def serve_report(source: ReportSource, host: str, port: int) -> None:
    """Serve the page until Ctrl-C."""
    audio = ReportAudio.of(source.config, source.world.vocabulary)
    current = CurrentReport(lambda: build_report(source.renewed(), audio), source.state_of_files)
    with ReportServer(host, port, current) as server:
        print(f"the report of {source.name} is at {server.address} until Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
