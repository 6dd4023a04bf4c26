"""nextslice: serve, annotate, simulate, report, recommend, demo-data, strategies, plan, doctor."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from loop.errors import NextSliceError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Active learning for medical images.")

_APP_DIR = Path(__file__).parent / "apps" / "radiology"
_LOCAL = "127.0.0.1"
_OWN_PROCESS = "the process is the command's own"


@app.command()
def serve(
    studies: Annotated[
        str, typer.Option("--studies", "-s", help="folder with the volumes, or address of a DICOMweb archive")
    ],
    conf: Annotated[
        list[str] | None, typer.Option("--conf", "-c", help="a setting: key value (or key=value); repeat for more")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = _LOCAL,
    port: Annotated[int, typer.Option(help="port to listen on", min=1, max=65535)] = 8000,
    app_dir: Annotated[Path, typer.Option("--app", help="app folder")] = _APP_DIR,
    log_level: Annotated[str, typer.Option(help="debug, info, warning, error")] = "info",
) -> None:
    """Start the server."""
    settings = _settings(conf)
    folder = Path(studies)
    if not studies.startswith(("http://", "https://")) and not folder.is_dir():
        _fail(
            f"--studies must be a folder that is there, or the address of a DICOMweb archive, got {studies!r}. "
            f"`nextslice demo-data {studies}` makes a folder to try."
        )
    # Imported late: MONAI Label takes seconds that the other commands need not wait for.
    from loop.assembly import check_plans_of, checked_config

    try:
        check_plans_of(studies, checked_config(studies, settings))
    except NextSliceError as error:
        _fail(str(error))
    _start_server(app_dir, studies, settings, host, port, log_level)


def _settings(conf: list[str] | None) -> dict[str, str]:
    from loop.config import settings_from
    from loop.errors import BadInput

    try:
        return settings_from(conf or [])
    except BadInput as error:
        _fail(str(error))


def _start_server(app_dir: Path, studies: str, conf: dict[str, str], host: str, port: int, log_level: str) -> None:
    from monailabel.main import Main

    from loop.forking import fork_server_from_here

    fork_server_from_here()  # before anything starts a thread
    arguments = ["start_server", "--app", str(app_dir), "--studies", studies, "--host", host, "--port", str(port)]
    arguments += ["--uvicorn_app", "server.app:application", "--log_level", log_level, "--verbose", log_level.upper()]
    for key, value in conf.items():
        arguments += ["--conf", key, value]
    shown = "localhost" if host in ("0.0.0.0", "::") else host
    typer.echo(f"NextSlice is starting at http://{shown}:{port}  (studies: {studies})")
    sys.argv = ["monailabel", *arguments]
    Main(actions="start_server").run()


@app.command("demo-data")
def demo_data(
    folder: Annotated[Path, typer.Argument(help="made with images/, labels/ (the ground truth)")],
    patients: Annotated[int, typer.Option(min=1, help="how many patients")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same data")] = 0,
) -> None:
    """Write phantom volumes with ground truth, to try everything on."""
    from bench.phantom import write_phantoms

    try:
        ids = write_phantoms(folder, patients=patients, seed=seed, progress=True)
    except FileExistsError as error:
        _fail(str(error))
    typer.echo(f"Wrote {len(ids)} volumes. Serve them with: nextslice serve --studies {folder / 'images'}")


@app.command()
def annotate(
    truth: Annotated[
        Path, typer.Option(help="folder with a ground-truth label or scribbles for every image, named like it")
    ],
    server: Annotated[str, typer.Option(help="address of the server")] = "http://127.0.0.1:8000",
    strategy: Annotated[str, typer.Option(help="strategy to ask with; empty is the server's default")] = "",
    until: Annotated[int, typer.Option(min=1, help="stop when this many slices are annotated")] = 40,
    annotator: Annotated[str, typer.Option(help="name to annotate under")] = "robot",
    evaluate: Annotated[int, typer.Option(min=0, help="volumes of unseen patients to measure Dice on; 0: none")] = 12,
    timeout: Annotated[float, typer.Option(min=1, help="give up after this many seconds without progress")] = 900.0,
    exam: Annotated[Path | None, typer.Option(help="folder with masks to measure Dice against, if not --truth")] = None,
) -> None:
    """Play the annotator: ask, submit the ground truth of the asked slices, wait for the new model, ask again."""
    from bench.robot import RobotError, annotate_until, terminal

    try:
        annotate_until(server, truth, strategy, until, annotator, evaluate, timeout, terminal, exam)
    except (RobotError, NextSliceError) as error:
        _fail(str(error))


@app.command()
def simulate(
    context: typer.Context,
    images: Annotated[Path, typer.Option(help="folder of images")],
    labels: Annotated[Path, typer.Option(help="folder with the true mask of every image, named like the image")],
    out: Annotated[Path, typer.Option(help="folder of the results; the same command goes on where it was stopped")],
    strategies: Annotated[str, typer.Option(help='comma separated; "all" annotates the whole pool: the upper bound')],
    scribbles: Annotated[Path | None, typer.Option(help="folder of scribbles that answer in the masks' place")] = None,
    preset: Annotated[str, typer.Option(help="a paper's protocol; what is given beside it counts more")] = "",
    unit: Annotated[str, typer.Option(help="slice or volume")] = "",
    start: Annotated[int, typer.Option(min=0, help="items annotated before the first choice; 0: the protocol's")] = 0,
    budget: Annotated[int, typer.Option(min=0, help="items a round; 0: the protocol's")] = 0,
    rounds: Annotated[int, typer.Option(min=0, help="rounds after the start; 0: the protocol's")] = 0,
    seeds: Annotated[str, typer.Option(help="5 is seeds 0 to 4; or a range 3-6, or a list 1,4")] = "5",
    model: Annotated[str, typer.Option(help="network; empty: the protocol's")] = "",
    protocol: Annotated[str, typer.Option(help="scratch or finetune; empty: the protocol's")] = "",
    scale: Annotated[float, typer.Option(help="smaller by this factor: start, budget, training steps")] = 1.0,
    most_pool: Annotated[int, typer.Option(min=0, help="at most so many volumes to choose from; 0: all")] = 0,
    most_test: Annotated[int, typer.Option(min=0, help="at most so many volumes to measure on; 0: all")] = 0,
    test_share: Annotated[float, typer.Option(help="share of the patients held aside to measure on")] = 0.25,
    conf: Annotated[
        list[str] | None, typer.Option("--conf", "-c", help="a setting of the server, as for serve")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="runs at once, each on its share of the cores")] = 1,
    devices: Annotated[str, typer.Option(help="comma separated; runs take them in turn")] = "auto",
    keep: Annotated[bool, typer.Option(help="keep every run's weights and signals")] = False,
    maps: Annotated[bool, typer.Option(help="keep a map of the first seed's last choice of each strategy")] = False,
) -> None:
    """Simulate annotation campaigns, with the truth for an annotator, and write tables of what each strategy gained."""
    from bench.campaign.command import simulate_command

    _fork_early(context)
    try:
        trouble = simulate_command(
            images, labels, scribbles, out,
            names=strategies, preset_name=preset, unit=unit, start=start, budget=budget, rounds=rounds, seeds=seeds, model=model,
            protocol=protocol, scale=scale, most_pool=most_pool, most_test=most_test, test_share=test_share,
            conf=_settings(conf), workers=workers, devices=devices, keep=keep, maps=maps,
            command=" ".join(["nextslice", *sys.argv[1:]]),
        )  # fmt: skip
    except NextSliceError as error:
        _fail(str(error))
    if trouble:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a campaign: campaign.json and its tables")],
    out: Annotated[Path | None, typer.Option(help="the page; report.html in the folder if not given")] = None,
    reference: Annotated[
        str, typer.Option(help="strategy that the others are compared with; empty: foreground_random, else random")
    ] = "",
) -> None:
    """Judge a campaign, also one that still runs: a page with figures, intervals and a recommendation."""
    from bench.campaign.report import write_report

    try:
        page = write_report(folder, out, reference=reference)
    except NextSliceError as error:
        _fail(str(error))
    typer.echo(f"Wrote {page}; its figures are in {folder / 'figures'}.")


@app.command()
def recommend(
    context: typer.Context,
    studies: Annotated[
        Path, typer.Option("--studies", "-s", help="folder with the volumes, some annotated to the end")
    ],
    conf: Annotated[
        list[str] | None, typer.Option("--conf", "-c", help="a setting, as of serve: key value; those of the server")
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="comma separated; empty: the usual baselines, others, and the one that is served")
    ] = "",
    seeds: Annotated[str, typer.Option(help="3 is seeds 0 to 2; or a range 3-6, or a list 1,4")] = "3",
    rounds: Annotated[int, typer.Option(min=1, help="rounds after the start")] = 3,
    budget: Annotated[int, typer.Option(min=0, help="items a round; 0: a twentieth of what can be chosen from")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder of the results; recommend in the state folder")] = None,
    workers: Annotated[int, typer.Option(min=1, help="runs at once, each on its share of the cores")] = 1,
) -> None:
    """Which strategy to use on these studies: a small campaign on what is annotated there, which is only read."""
    from tqdm import tqdm

    from bench.campaign.advice import Wish, recommend_command
    from bench.campaign.command import names_of
    from bench.campaign.protocol import seeds_of

    _fork_early(context)
    command = " ".join(["nextslice", *sys.argv[1:]])
    try:
        chosen, names = tuple(seeds_of(seeds)), tuple(names_of(strategies))
        wish = Wish(studies, out, _settings(conf), names, chosen, rounds, budget, workers, command)
        trouble = recommend_command(wish, tqdm.write)
    except NextSliceError as error:
        _fail(str(error))
    if trouble:
        raise typer.Exit(1)


@app.command("strategies")
def list_strategies() -> None:
    """What can be asked with."""
    import strategies
    from bench.tables import table

    known = strategies.table()
    header = ["name", "asks for", "needs", "cost of a sweep; of choosing", "2D/3D", "source"]
    keys = ("name", "asks_for", "needs", "cost", "dimensions", "source")
    typer.echo(table("Strategies", header, [[row[key] for key in keys] for row in known], text=True))
    parameters = [
        [row["name"], entry["name"], str(entry["default"]), entry["help"]]
        for row in known
        for entry in row["parameters"]
    ]
    typer.echo(table("Their parameters", ["strategy", "parameter", "default", "meaning"], parameters, text=True))


@app.command()
def plan(
    studies: Annotated[Path, typer.Option("--studies", "-s", help="folder with the volumes")],
    conf: Annotated[
        list[str] | None, typer.Option("--conf", "-c", help="a setting, as of serve: key value; model is nnunet")
    ] = None,
    again: Annotated[bool, typer.Option(help="plan anew; weights of former plans can be used no more")] = False,
) -> None:
    """Print nnU-Net's plans of a campaign; they are made and kept now if there are none."""
    if not studies.is_dir():
        _fail(f"--studies must be a folder that is there, got {str(studies)!r}.")
    settings = {"model": "nnunet", **_settings(conf)}
    # Imported late: MONAI Label and PyTorch take seconds that the other commands need not wait for.
    from bench.plans import planned_campaign

    try:
        for name, value in planned_campaign(studies, settings, again, lambda text: typer.echo(text, err=True)).items():
            typer.echo(f"{name:32} {value}")
    except NextSliceError as error:
        _fail(str(error))


@app.command()
def doctor(
    studies: Annotated[str, typer.Option("--studies", "-s", help="folder to look at too")] = "",
) -> None:
    """Check the installation, the device, and a studies folder; says what is wrong and what to do."""
    from bench.doctor import examine

    findings = examine(studies)
    for finding in findings:
        typer.echo(
            f"{'ok  ' if finding.ok else 'BAD '} {finding.what}"
            + (f"\n     {finding.way_out}" if finding.way_out else "")
        )
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _fork_early(context: typer.Context) -> None:
    """Runs are then forked from what is imported here already; not where others started us, who may have threads."""
    if context.obj == _OWN_PROCESS:
        from loop.forking import fork_server_from_here

        fork_server_from_here()


def _fail(message: str) -> NoReturn:
    typer.echo(f"nextslice: {message}", err=True)
    raise typer.Exit(2)


def _paired(arguments: list[str]) -> list[str]:
    """`--conf key value`, as MONAI Label writes it, turned into `--conf key=value`."""
    joined, rest = [], iter(arguments)
    for argument in rest:
        joined.append(argument)
        if argument in ("--conf", "-c"):
            key = next(rest, "")
            joined.append(key if "=" in key else f"{key}={next(rest, '')}")
    return joined


def main() -> None:
    """Entry point."""
    app(_paired(sys.argv[1:]), obj=_OWN_PROCESS)


if __name__ == "__main__":
    main()
