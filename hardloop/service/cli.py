"""The command line. Heavy imports happen inside the commands: `hardloop --help` answers at once."""

import json
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from hardloop import __version__
from hardloop.core.errors import HardloopError

app = typer.Typer(
    name="hardloop",
    help="Closes the loop data → label → train → deploy for vision models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
queue_app = typer.Typer(help="Look at and decide about the review queue.", no_args_is_help=True)
app.add_typer(queue_app, name="queue")

Config = Annotated[Path, typer.Option("--config", "-c", help="The settings file.", envvar="HARDLOOP_CONFIG")]
LoopName = Annotated[str, typer.Argument(help="The loop's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def main() -> None:
    """The entry point: a mistake is a sentence and exit code 2, an interrupt is 130, never a traceback."""
    # Ctrl-C and a polite kill end the same way: through every `finally` that stops children. A shell's background job
    # is born deaf to Ctrl-C; whoever sends it all the same means it.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except HardloopError as error:
        typer.echo(f"hardloop: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("hardloop: stopped", err=True)
        sys.exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise KeyboardInterrupt


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context, show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Print the version when asked."""
    if show:
        typer.echo(f"hardloop {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder of class folders, a zip with labels.csv, or IDX files; the built-in digits if left out."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How often the loop is closed.")] = 3,
    budget: Annotated[int, typer.Option(min=2, max=10_000, help="Labels asked for in each round.")] = 40,
    first_labels: Annotated[
        int | None,
        typer.Option(min=2, max=10_000, help="Labels the first model gets; two a class, 20 at least, if left out."),
    ] = None,
    annotator_error: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of wrong answers.")] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything drawn at random.")] = 0,
    recipe: Annotated[
        Literal["linear-probe", "small-cnn"], typer.Option(help="How models are trained.")
    ] = "linear-probe",
    limit: Annotated[int, typer.Option(min=50, help="Use at most so many images, drawn by class.")] = 10_000,
    report: Annotated[Path, typer.Option(help="Where the report goes; a page lies beside it.")] = Path("report.json"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end, until Ctrl-C.")] = False,
) -> None:
    """Close the whole loop on real servers and compare it with random picking.

    Example: hardloop demo --data photos/ --rounds 4 --budget 60
    """
    from hardloop.service.demo.options import Options
    from hardloop.service.demo.run import run

    sys.exit(
        run(
            Options(
                data=data,
                rounds=rounds,
                budget=budget,
                first_labels=first_labels,
                annotator_error=annotator_error,
                seed=seed,
                recipe=recipe,
                limit=limit,
                report=report,
                keep=keep,
            )
        )
    )


@app.command()
def init(
    labels: Annotated[str, typer.Option(help="The classes, separated by commas.")],
    name: Annotated[str, typer.Option(help="The loop's name.")] = "images",
    config: Config = Path("hardloop.toml"),
) -> None:
    """Write a commented settings file.

    Example: hardloop init --name shoes --labels boot,sandal,sneaker
    """
    from hardloop.service.settings_file import write_new

    write_new(config, name, [label.strip() for label in labels.split(",") if label.strip()])
    typer.echo(f"wrote {config}; next: hardloop up")


@app.command()
def up(config: Config = Path("hardloop.toml")) -> None:
    """Run the service, with embedded servers for whatever the settings give no address for. Ctrl-C stops it all.

    Example: hardloop up --config hardloop.toml
    """
    from hardloop.service.addresses import show
    from hardloop.service.progress import Lines
    from hardloop.service.settings import load
    from hardloop.service.stack import Stack

    with Stack(load(config), config) as stack:
        connections = stack.start(Lines())
        typer.echo(show(connections, stack.settings))
        threading.Event().wait()


@app.command()
def status(config: Config = Path("hardloop.toml"), as_json: AsJson = False) -> None:
    """How every loop stands.

    Example: hardloop status --json
    """
    client = _client(config)
    found = [client.get(f"/loops/{name}") for name in client.get("/loops")]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from hardloop.service.addresses import status_lines

    for loop in found:
        typer.echo("\n".join(status_lines(loop)))


@queue_app.command("list")
def queue_list(
    loop: LoopName,
    config: Config = Path("hardloop.toml"),
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to show.")] = 20,
) -> None:
    """What waits for a decision, the most valuable first.

    Example: hardloop queue list shoes
    """
    items = _client(config).get(f"{_below(loop)}/queue?state=queued&limit={limit}")["items"]
    if as_json:
        typer.echo(json.dumps(items, indent=2))
        return
    for item in items:
        typer.echo(
            f"{item['rank'] + 1:5}  {item['sample_id']}  {item['arm']:<11}  {'; '.join(item['receipt']['reasons'])}"
        )
    if not items:
        stands = _client(config).get(_below(loop))
        typer.echo(
            f"nothing waits: {stands['queue']['open']} are with annotators and {stands['unasked']} were never picked; "
            f"'hardloop mine {loop}' picks from them now{_by_itself(stands)}"
        )


@queue_app.command("approve")
def queue_approve(
    loop: LoopName,
    sample: Annotated[list[str] | None, typer.Argument(help="Sample ids; all that wait if left out.")] = None,
    config: Config = Path("hardloop.toml"),
) -> None:
    """Let queue items become tasks: those named, or all that wait.

    Example: hardloop queue approve shoes
    """
    changed = _client(config).post(f"{_below(loop)}/queue/approve", {"sample_ids": sample or None})["changed"]
    typer.echo(f"approved {changed}")


@queue_app.command("reject")
def queue_reject(
    loop: LoopName,
    sample: Annotated[list[str], typer.Argument(help="Sample ids.")],
    config: Config = Path("hardloop.toml"),
) -> None:
    """Never ask annotators about these samples.

    Example: hardloop queue reject shoes 5f2c…
    """
    changed = _client(config).post(f"{_below(loop)}/queue/reject", {"sample_ids": sample})["changed"]
    typer.echo(f"rejected {changed}")


@app.command()
def mine(
    loop: LoopName,
    budget: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="How many; the loop's own budget if left out.")
    ] = None,
    config: Config = Path("hardloop.toml"),
) -> None:
    """Pick samples into the review queue now.

    Example: hardloop mine shoes --budget 100
    """
    selection = _job(config, loop, {"steps": ["mine"], "budget": budget})["mine"]
    client = _client(config)
    (found,) = [row for row in client.get(f"{_below(loop)}/selections") if row["selection_id"] == selection]
    for sentence in found["shortfall"]:
        typer.echo(sentence)
    page = client.get(f"{_below(loop)}/queue?selection={quote(selection)}&limit=1000")
    picked = f"{len(page['items'])}{' and more' if page['next'] else ''} picked"
    typer.echo(f"selection {selection}: {picked}" + (f"; next: hardloop queue list {loop}" if page["items"] else ""))


@app.command()
def train(loop: LoopName, config: Config = Path("hardloop.toml")) -> None:
    """Train on all labels now, without waiting for the trigger, and put the candidate through the gate.

    Example: hardloop train shoes
    """
    found = _job(config, loop, {"steps": ["train", "promote"], "manual": True})
    made = f"version {found['train']} was trained" if found["train"] else "these labels were trained on already"
    typer.echo(f"{made}; version {found['promote']} serves" if found["promote"] else f"{made}; none serves yet")
    for decision in _client(config).get(f"{_below(loop)}/decisions") if found["train"] else ():
        if decision["model_version"] == found["train"]:
            typer.echo(f"the gate: {decision['reason']}")


@app.command()
def rollback(
    loop: LoopName,
    reason: Annotated[str, typer.Argument(help="Why; kept in the history.")],
    config: Config = Path("hardloop.toml"),
) -> None:
    """Serve the version before the champion again.

    Example: hardloop rollback shoes "misreads the new packaging"
    """
    found = _client(config).post(f"{_below(loop)}/rollback", {"reason": reason, "actor": "command line"})
    typer.echo(f"version {found['champion']} serves again")


def _by_itself(stands: dict[str, Any]) -> str:
    """When the service will pick without being asked, where it does."""
    return f", the service does so from {stands['mines_from']} on" if stands["mines_from"] else ""


def _client(config: Path) -> Any:
    from hardloop.service import connections as known
    from hardloop.service.client import Client
    from hardloop.service.settings import load

    return Client(known.read(load(config).data_dir))


def _below(loop: str) -> str:
    return f"/loops/{quote(loop, safe='')}"


def _job(config: Path, loop: str, body: dict[str, Any]) -> dict[str, Any]:
    from hardloop.service.progress import Lines

    job: dict[str, Any] = _client(config).run(quote(loop, safe=""), body, progress=Lines())
    if job["state"] == "failed":
        raise HardloopError(job["error"])
    result: dict[str, Any] = job["result"]
    return result
