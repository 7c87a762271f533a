"""`megatron-compete report RUN [RUN ...]`: the page of runs, as a file or live on the loopback interface."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from megatron_compete.cluster.queue import ask_queue
from megatron_compete.cluster.run_folder import PRIVATE, REPORT, RunFolder
from megatron_compete.common.command_line import Command, check_options, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.report.run import Run, RunReader, find_runs

PORT = 8008


@dataclass(frozen=True)
class ReportOptions:
    """The verb's flags."""

    runs: tuple[Path, ...] = option(MISSING, "runs", metavar="RUN", help="run folder, folder of a chain, or a --tensorboard-dir")  # fmt: skip
    out: Path | None = option(None, metavar="FILE", help="HTML file to write (default: report.html in the only RUN)")
    serve: bool = option(False, help="show it on 127.0.0.1 instead, and follow the runs, until Ctrl-C")
    port: int = option(PORT, help="of --serve; 0 is any that is free")
    peak_tflops: float | None = option(None, help="TFLOP/s that a GPU can at most, for the MFU")

    def __post_init__(self) -> None:
        check_options(self)
        if self.serve and self.out is not None:
            raise CompeteError(f"--out {self.out} and --serve exclude each other: a served page is no file")
        if not self.serve and self.out is None and len(self.runs) != 1:
            raise CompeteError(f"{len(self.runs)} runs: say by --out FILE where their page goes")
        if not 0 <= self.port < 1 << 16:
            raise CompeteError(f"--port {self.port} is out of range: give 1 to 65535, or 0 for any that is free")
        if self.peak_tflops is not None and not self.peak_tflops > 0:
            raise CompeteError(f"--peak-tflops {self.peak_tflops:g} is out of range: give TFLOP/s above 0, such as 989")


def make_report(options: ReportOptions) -> None:
    """Write the page, or serve it until Ctrl-C.

    Raises:
        CompeteError: a folder without a run, a file that cannot be written, a port that is taken.
    """
    reader = RunReader(find_runs(options.runs))
    if options.serve:
        _serve(reader, options)
        return
    from megatron_compete.report.page import write_page
    from megatron_compete.report.run_page import run_page

    out = options.out or options.runs[0] / REPORT
    mode = PRIVATE if options.out is None else None  # it shows the recipe, which a run folder keeps to its owner
    write_page(run_page(read_now(reader), options.peak_tflops), out, mode)
    print(out)


def read_now(reader: RunReader) -> list[Run]:
    """The runs, with what Slurm says of their jobs."""
    ids = (RunFolder(folder).job_id for folder in reader.folders)
    return reader.read(ask_queue(job_id for job_id in ids if job_id is not None))


def _serve(reader: RunReader, options: ReportOptions) -> None:
    from megatron_compete.report.page import render
    from megatron_compete.report.run_page import run_page
    from megatron_compete.report.server import LivePage, ReportServer

    def make(version: str) -> str:
        return render(run_page(read_now(reader), options.peak_tflops), version)

    with ReportServer(LivePage(reader.version, make), options.port) as server:
        print(f"{server.address}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


main = Command(
    name="report",
    description="""One HTML page of a run, or of several over each other: losses, speed, competition, loads of the experts,
    attempts and failures, settings and what differs. The file holds everything and works offline. Folders of other
    trainers with TensorBoard's event files will do.""",
    epilog="From another machine, --serve is reached by ssh -L 8008:127.0.0.1:8008 HOST.",
    example="runs/competesmoe_154m --serve",
    options=ReportOptions,
    run=make_report,
)
