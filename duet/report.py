"""`duet report RUN`: one HTML page to see and hear a run, which opens without a network; of a running job, too."""

import argparse
import contextlib
from pathlib import Path

from common.errors import InputError
from observability.report.audio import ReportAudio
from observability.report.html import build_report
from observability.report.server import CurrentReport, ReportServer
from observability.report.source import ReportSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run, or its name under runs/")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the page (default: RUN/report.html)")
    parser.add_argument("--serve", action="store_true", help="serve the page instead, always current, until Ctrl-C")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: %(default)s, this machine only)"
    )
    parser.add_argument("--port", type=int, default=0, help="port to serve on (default: any free one)")


def run(options: argparse.Namespace) -> Path | None:
    """Writes the page and returns where, or serves it. Raises InputError for a directory that is no run."""
    source = ReportSource.open(options.run)
    if options.serve:
        serve(source, options.host, options.port)
        return None
    path = write(source, options.out or source.directory / "report.html")
    print(f"{path}  ({path.stat().st_size / 1e6:.1f} MB)")
    return path


def write(source: ReportSource, path: Path) -> Path:
    """The page as a file, whole or not at all."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(build_report(source, ReportAudio.of(source.config, source.world.vocabulary)), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise InputError(f"--out: {path} cannot be written: {error}; name a file in a folder that can be") from error
    return path


def serve(source: ReportSource, host: str, port: int) -> None:
    """Until it is interrupted."""
    sounds = ReportAudio.of(source.config, source.world.vocabulary)
    current = CurrentReport(lambda: build_report(source.renewed(), sounds), source.state_of_files)
    with ReportServer(host, port, current) as server:
        print(f"the report of {source.name} is at {server.address} until Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
