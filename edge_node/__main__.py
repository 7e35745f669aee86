"""The artist's and the gallery's program: `sfumato`. Parses, calls one function, prints; nothing is decided here.

Imports of torch and flwr wait inside the commands that need them: painting needs neither.
"""

from __future__ import annotations

import getpass
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edge_node import budget, consent, ingest, library, membership, node, originality, paint, releases, runtimes, styles
from edge_node.config import Config, Home, checked_name, find_home
from edge_node.styles import Style
from export import console, policy, settings
from export.console import DEBUG, HomeOption, JsonOption
from export.errors import IntegrityError, NotConfiguredError, ResourceError, SfumatoError, UsageError
from export.fold import FoldError
from export.invite import Invite, parse_address
from export.ledger import Ledger, Value
from export.signing import VerifiedRelease

app = typer.Typer(
    name="sfumato", no_args_is_help=True, add_completion=False, help="A generator in your own style, on your own machine."
)
policy_app = typer.Typer(no_args_is_help=True, help="What the federation asks and promises; rounds wait for you to agree.")
works_app = typer.Typer(no_args_is_help=True, help="Your works: referenced where they lie, never copied or sent.")
release_app = typer.Typer(no_args_is_help=True, help="Shared bodies: signed, verified, kept.")
app.add_typer(works_app, name="works")
app.add_typer(release_app, name="release")
app.add_typer(policy_app, name="policy")


@app.command()
def init(
    *,
    artist: Annotated[str | None, typer.Option(help="Your name as credited; your login name if not given.")] = None,
    style: Annotated[str | None, typer.Option(help="Name of your main style; made from your name if not given.")] = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads to use.")] = 2,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set this machine up."""
    with console.errors(as_json=as_json):
        place = find_home(home)
        if place.config_file.exists():
            raise UsageError(f"{place.root} is set up already", advice=f"Edit {place.config_file} to change settings.")
        name = _artist(artist)
        slug = style or re.sub(r"[^A-Za-z0-9]+", "-", name)[:40].strip("-").lower() or "style"
        chosen = Config(artist=name, style=checked_name(slug, "a style"), threads=threads)
        place.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings.save(place.config_file, chosen)
        chosen = place.config()  # what cannot be read again was not set up
        data = {"home": str(place.root), "artist": chosen.artist, "style": chosen.style}
        console.show(
            data, as_json=as_json, text=lambda: console.said(f"Set up in {place.root}.", "Next: sfumato works add DIR")
        )


@works_app.command("add")
def works_add(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of pictures of your works.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add every work of a folder to the library; says which were left out, and why."""
    with console.errors(as_json=as_json):
        found = library.add(_ready(home), folder)
        taken = [f for f in found if isinstance(f, ingest.Taken)]
        left = [f for f in found if isinstance(f, ingest.Left)]
        data = {
            "added": [f.path.name for f in taken],
            "left_out": [{"file": f.path.name, "reason": f.reason, "detail": f.detail} for f in left],
        }

        def text() -> None:
            console.said(f"{len(taken)} works added, {len(left)} left out.")
            if left:
                console.table(["left out", "reason", ""], [[f.path.name, f.reason, f.detail] for f in left])

        console.show(data, as_json=as_json, text=text)


@works_app.command("list")
def works_list(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the works in the library, and whether each is still the file that was added."""
    with console.errors(as_json=as_json):
        entries = library.entries(_ready(home))
        states = [entry.state() for entry in entries]
        data = {
            "works": [
                {"path": str(e.path), "width": e.width, "height": e.height, "state": state}
                for e, state in zip(entries, states, strict=True)
            ]
        }
        rows = [[str(e.path), f"{e.width} x {e.height}", state] for e, state in zip(entries, states, strict=True)]
        console.show(data, as_json=as_json, text=lambda: console.table(["work", "pixels", "state"], rows))


@app.command()
def learn(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of works in one style.")],
    *,
    style: Annotated[str, typer.Option(help="Name for the style.")],
    replace: Annotated[bool, typer.Option("--replace", help="Even if that style was learned from other works.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn a style from a folder of works, on this machine alone: nothing is sent anywhere."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        checked_name(style, "a style")
        if not replace:
            styles.refuse_other_folder(place, style, folder)
        train = _learning()
        with _bar(f"learning {style}", quiet=as_json) as progress:
            learned = train.learn(place, style, folder, progress)

        def text() -> None:
            _style_text({learned.name: learned})
            console.said(f"Learned from {learned.works} of {learned.works_found} works.", originality.sentence(learned))
            if learned.compromise:
                console.said(learned.compromise)

        console.show(_style(learned), as_json=as_json, text=text)


@app.command("styles")
def list_styles(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the styles that can be painted with: your own, and the public ones of the release in use."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        found = styles.all_styles(place)
        source = _in_use(place)
        public = [name for name in styles.public_codes(source) if name not in found] if source else []
        said = _release_name(source) if source else ""
        data = {
            "styles": [_style(style) if style else {"name": name, "damaged": True} for name, style in found.items()],
            "public": [{"name": name, "release": said} for name in public],
        }

        def text() -> None:
            _style_text(found)
            copies = [style for style in found.values() if style and style.originality and style.originality.is_copy]
            console.said(*(f"{style.name}: {originality.sentence(style)}" for style in copies))
            console.table(["public style", "of release"], [[name, said] for name in public])

        console.show(data, as_json=as_json, text=text)


@app.command()
def join(
    invite: Annotated[
        str, typer.Argument(metavar="INVITE", help="CODE@HOST:PORT, as the coordinator gave it; on its network the code alone.")
    ],
    *,
    at: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where the coordinator is, whatever INVITE says.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join a federation with an invite. Checks who answers before anything is sent."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        member = membership.join(place, membership.placed(place, Invite.parse(invite, at)))
        console.show(
            asdict(member),
            as_json=as_json,
            text=lambda: console.said(
                f"Joined {member.federation} as {member.alias}.",
                f"The coordinator's list of members must show these six digits beside your name: {member.digits}",
                "Next: sfumato policy show, and sfumato policy accept; then sfumato up",
            ),
        )


@app.command()
def move(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the coordinator answers now.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow the coordinator to another address. Checks that it is the same one."""
    with console.errors(as_json=as_json):
        member = membership.move(_ready(home), *parse_address(address))
        said = f"{member.federation} answers at {member.address}. If sfumato up runs, start it anew."
        console.show(asdict(member), as_json=as_json, text=lambda: console.said(said))


@policy_app.command("show")
def policy_show(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the federation's policy in words, and whether you have agreed to it."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        offered, accepted = consent.show(place), consent.accepted(place)
        is_accepted = accepted is not None and accepted.digest == offered.digest
        before = None if accepted is None or is_accepted else accepted.policy.version

        def text() -> None:
            console.said(f"Policy {offered.policy.version} of {offered.policy.federation}:")
            console.said(*(f"- {sentence}" for sentence in policy.in_words(offered.policy)))
            console.said(_agreed(before, is_accepted=is_accepted))

        data = {"policy": asdict(offered.policy), "digest": offered.digest, "accepted": is_accepted, "accepted_before": before}
        console.show(data, as_json=as_json, text=text)


@policy_app.command("accept")
def policy_accept(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Agree to the policy that sfumato policy show shows. Nothing is trained in rounds or sent before."""
    with console.errors(as_json=as_json):
        agreed = consent.accept(_ready(home))
        text = f"You have agreed to policy {agreed.policy.version} of {agreed.policy.federation}."
        data = {"version": agreed.policy.version, "digest": agreed.digest}
        console.show(data, as_json=as_json, text=lambda: console.said(text))


@app.command()
def up(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Take part: train in rounds, fetch releases, keep styles fresh. Runs until Ctrl-C."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        console.log_to_stderr(debug=DEBUG)
        member = membership.load(place)
        budget.require_ready(place)
        data = {"federation": member.federation, "alias": member.alias}
        node.run(
            place,
            on_ready=lambda: console.show(
                data, as_json=as_json, text=lambda: console.said(f"Taking part in {member.federation}. Ctrl-C ends it.")
            ),
        )


@app.command("paint")
def paint_photo(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="JPEG, PNG or WebP, 64 pixels a side to 8 megapixels.")],
    *,
    style: Annotated[str, typer.Option(help="NAME of your own style or a public one, or a mix: NAME=WEIGHT,NAME=WEIGHT.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write: .jpg, .png or .webp.")],
    strength: Annotated[float, typer.Option(help="0 is the photo, 1 the style.")] = 1.0,
    size: Annotated[int | None, typer.Option(min=64, help="Make the picture smaller first: longest side in pixels.")] = None,
    runtime: Annotated[str, typer.Option(help="auto (the fastest here), onnxruntime or openvino.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or int8.")] = "auto",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Paint a photo in a style, at the photo's own size."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        weights = paint.parse_mix(style)
        picture = paint.read_photo(photo, size)
        paint.refuse_output(output, photo, picture)
        choices = paint.precision_choice(precision), runtimes.runtime_choice(runtime)
        painted = paint.paint(place, paint.Order(picture, weights, strength, *choices))
        paint.write_picture(output, painted.picture)
        height, width = painted.picture.shape[:2]
        data = {
            "picture": str(output),
            "width": width,
            "height": height,
            "runtime": painted.runtime,
            "precision": painted.precision,
            "graph": painted.graph,
        }
        how = f"{painted.runtime}, {painted.precision}, {painted.graph} graph"
        console.show(data, as_json=as_json, text=lambda: console.said(f"{output}: {width} x {height} ({how})"))


@release_app.command("list")
def release_list(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List installed releases; the one in use is marked."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        in_use = _number_in_use(place)
        found = {version: _opened(place, version) for version in releases.versions(place)}
        data = {"releases": [_release(version, r) | {"current": version == in_use} for version, r in found.items()]}
        rows = [["*" if version == in_use else "", *_release_row(version, r)] for version, r in found.items()]
        console.show(data, as_json=as_json, text=lambda: console.table(["", "version", "round", "body", "created"], rows))


@release_app.command("install")
def release_install(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A release folder.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a release folder and make it the one in use."""
    with console.errors(as_json=as_json):
        installed = releases.install(_ready(home), folder)
        console.show(
            _release(installed.manifest.version, installed),
            as_json=as_json,
            text=lambda: console.said(f"Installed release {installed.manifest.version} of {installed.manifest.federation}."),
        )


@release_app.command("verify")
def release_verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A release folder.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a release folder is what this machine's federation signed; changes nothing."""
    with console.errors(as_json=as_json):
        verified = releases.verify(_ready(home), folder)
        console.show(
            _release(verified.manifest.version, verified),
            as_json=as_json,
            text=lambda: console.said(f"Genuine: release {verified.manifest.version} of {verified.manifest.federation}."),
        )


@release_app.command("rollback")
def release_rollback(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Go back to the release before the current one."""
    with console.errors(as_json=as_json):
        now = releases.rollback(_ready(home))
        text = f"Release {now.manifest.version} is in use again."
        console.show(_release(now.manifest.version, now), as_json=as_json, text=lambda: console.said(text))


@app.command()
def status(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say what this machine is, has and takes part in."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        config = place.config()
        member = membership.load(place) if place.membership_file.exists() else None
        release = _in_use(place)
        found = styles.all_styles(place)
        states = [entry.state() for entry in library.entries(place)]
        data = {
            "home": str(place.root),
            "artist": config.artist,
            "works": states.count("ok"),
            "works_gone_or_changed": len(states) - states.count("ok"),
            "styles": list(found),
            "federation": member.federation if member else None,
            "release": _release(_number_in_use(place), release),
            "updates_sent": sum(entry.get("what") == "update" for entry in Ledger(place.ledger_file).entries()),
            "renewal_due": release is not None and node.needs_renewal(place),
            "damaged": [f"style {name}" for name, style in found.items() if style is None] + ([] if release else ["release"]),
        }
        rows = [[key, str(value)] for key, value in data.items() if key != "release"]
        rows.append(["release", _release_name(release) if release else "damaged"])
        console.show(data, as_json=as_json, text=lambda: console.table(["", ""], rows))


@app.command("budget")
def budget_(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what updates may tell of one work at the most, what of it is spent, and how many rounds are left."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        if not budget.is_kept(place.config()):
            raise NotConfiguredError(
                "no privacy budget is kept here", advice=f"Set private_epsilon in {place.config_file}; it takes 50 works."
            )
        works = budget.usable_works(place)
        steps = consent.required(place).policy.steps
        budget.require_enough_works(place.config(), works, steps)
        found = budget.standing(place, works, steps)
        said = (
            f"Spent: epsilon {found.spent:.2f} of {found.limit:g}, which may fail with probability {found.delta:g}. Another "
            f"round of {works} works brings it to {found.next:.2f}; {found.rounds_left} more fit. It bounds what updates tell "
            "of one work, and not your own style or its pictures, which are made of the works as they are."
        )
        console.show(asdict(found), as_json=as_json, text=lambda: console.said(said))


@app.command()
def ledger(
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only say whether the account is unbroken, and its last digest.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every update this machine sent, what became of it, and what you agreed to; and whether that account is unbroken."""
    with console.errors(as_json=as_json):
        account = Ledger(_ready(home).ledger_file)
        entries = account.entries()
        if verify:
            head = account.head()
            text = f"The account is unbroken: {len(entries)} lines, the last one's digest is {head}"
            console.show({"lines": len(entries), "head": head}, as_json=as_json, text=lambda: console.said(text))
            return
        fields = ["when", "what", "federation", "round", "bytes", "norm", "norm-sent", "noise", "sha256"]
        rows = [[_cell(entry.get(field)) for field in fields] + [_remark(entry)] for entry in entries]
        tensors = next((entry.get("tensors") for entry in reversed(entries) if entry.get("what") == "update"), None)

        def text_() -> None:
            console.table([*fields, ""], rows)
            if isinstance(tensors, list):
                console.said(f"Each update holds numbers of these tensors of the shared body alone: {', '.join(tensors)}")

        console.show({"entries": entries}, as_json=as_json, text=text_)


def _cell(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)[:16]


def _remark(entry: Mapping[str, Value]) -> str:
    """What a line says besides, for people."""
    match entry.get("what"):
        case "verdict":
            return "counted" if entry.get("accepted") else f"not counted: {entry.get('reason')}. {entry.get('advice')}"
        case "update" if "peers" in entry:
            return f"under the masks of {entry.get('peers')} others, {entry.get('peers-new')} of them met for the first time"
        case "agreed":
            return f"policy {entry.get('version')}, {entry.get('visibility')}"
        case "joined" | "rejoined":
            return f"as {entry.get('alias')}, {entry.get('role')}; six digits {entry.get('digits')}"
        case _:
            return ""


@app.command("run-tasks", hidden=True)
def run_tasks(*, port: Annotated[int, typer.Option()], home: HomeOption = None) -> None:
    """The runner beside the SuperNode; started by `up`."""
    with console.errors(as_json=False):
        console.log_to_stderr(debug=DEBUG)
        from edge_node.runner import run  # noqa: PLC0415 - flwr

        run(_ready(home), port)


@app.command("renew", hidden=True)
def renew(*, home: HomeOption = None) -> None:
    """Fit the styles to the current body; started by `up`."""
    with console.errors(as_json=False):
        console.log_to_stderr(debug=DEBUG)
        place = _ready(home)
        train = _learning()
        source = releases.current(place)  # once: what is noted below is what was tried, though a newer one may come meanwhile
        for name in dict.fromkeys([place.config().style, *styles.names(place)]):
            try:
                renewed = train.renew(place, name, source)
            except ResourceError:  # the next style would find the disk as full
                raise
            except (SfumatoError, ArithmeticError, FoldError) as error:  # must not keep the others, nor be tried for ever
                why = error.advice if isinstance(error, SfumatoError) else type(error).__name__  # no path of a work
                logging.getLogger(__name__).warning("style %s: kept as it was. %s", name, why)
                continue
            logging.getLogger(__name__).info("style %s: %s", name, "renewed" if renewed else "kept as it was")
            if renewed and renewed.originality and renewed.originality.is_copy:  # which work, no log shall say
                logging.getLogger(__name__).warning("style %s: near copies of a work; see sfumato styles", name)
        node.note_renewed(place, source.manifest.body)


def _agreed(before: int | None, *, is_accepted: bool) -> str:
    if is_accepted:
        return "You have agreed to it."
    if before is None:
        return "You have not agreed to it. Agree with: sfumato policy accept"
    return f"You have agreed to version {before} and not to this one. Until you do, you take no part: sfumato policy accept"


def _ready(home: Path | None) -> Home:
    """The home, or advice to make one."""
    place = find_home(home)
    place.config()
    return place


def _artist(given: str | None) -> str:
    try:
        name = given or getpass.getuser()
    except (OSError, KeyError, ImportError) as error:  # which of them, depends on the system
        raise UsageError("this system knows no login name", advice="Say yours with: --artist NAME") from error
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise UsageError(f"{name!r} cannot be an artist's name", advice="Use --artist with 1 to 100 printable characters.")
    return name


def _learning() -> ModuleType:
    """The training module, or advice to install what it needs."""
    try:
        from edge_node import train  # noqa: PLC0415 - torch
    except ImportError as error:
        raise NotConfiguredError(
            "learning needs more than is installed here", advice="Install it with: pip install 'sfumato[learn]'"
        ) from error
    return train


@contextmanager
def _bar(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr that says how long is left; hidden until the first ten steps have been timed."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=console.talk, disable=quiet, transient=True) as progress:
        task = progress.add_task(what, total=None)

        def step(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total if done >= 10 else None)

        yield step


def _style(style: Style) -> dict[str, object]:
    return {
        "name": style.name,
        "artist": style.artist,
        "works": style.works,
        "works_found": style.works_found,
        "made": style.made,
        "body": style.body,
        "score": asdict(style.score),
        "int8_parity": asdict(style.parity) if style.parity else None,
        "folding": asdict(style.folding) if style.folding else None,
        "graph": "folded" if style.is_folded else "exact",
        "first_norm_live": style.first_live,
        "precision": style.best_precision,
        "originality": _originality(style),
        "damaged": False,
    }


def _originality(style: Style) -> dict[str, object]:
    found = style.originality
    said: dict[str, object] = {"checked": found is not None, "sentence": originality.sentence(style)}
    if found is None:
        return said
    return said | {"near_copy": found.is_copy, "by": list(found.spoke), "nearest": found.nearest, "figures": asdict(found)}


def _style_text(found: Mapping[str, Style | None]) -> None:
    rows = [_style_row(style) if style else [name, "damaged"] for name, style in found.items()]
    console.table(["style", "artist", "works", "distance", "int8 parity", "paints in", "original", "made"], rows)


def _style_row(style: Style) -> list[str]:
    works = str(style.works) if style.works == style.works_found else f"{style.works} of {style.works_found}"
    distance, parity = f"{style.score.style:.4f}", f"{style.parity.psnr_db:.1f} dB" if style.parity else "none"
    paints_in = style.best_precision if style.is_folded else "exact fp32"
    found = style.originality
    original = "not checked" if found is None else "no" if found.is_copy else "yes"
    return [style.name, style.artist, works, distance, parity, paints_in, original, style.made[:10]]


def _in_use(home: Home) -> VerifiedRelease | None:
    """The release in use; None if it is damaged."""
    try:
        return releases.current(home)
    except IntegrityError:
        return None


def _number_in_use(home: Home) -> int | None:
    try:
        return releases.current_version(home)
    except IntegrityError:
        return None


def _opened(home: Home, version: int) -> VerifiedRelease | None:
    """An installed release; None if it is damaged."""
    try:
        return releases.opened(home, version)
    except IntegrityError:
        return None


def _release(version: int | None, release: VerifiedRelease | None) -> dict[str, object]:
    if release is None:
        return {"version": version, "damaged": True}
    manifest = release.manifest
    return {
        "federation": manifest.federation,
        "version": manifest.version,
        "round": manifest.round,
        "body": manifest.body,
        "created": manifest.created,
        "contributors": manifest.contributors,
        "verdict": asdict(manifest.verdict) if manifest.verdict else None,
        "damaged": False,
    }


def _release_name(release: VerifiedRelease) -> str:
    return f"{release.manifest.federation} {release.manifest.version}"


def _release_row(version: int, release: VerifiedRelease | None) -> list[str]:
    if release is None:
        return [str(version), "", "damaged", ""]
    manifest = release.manifest
    return [str(manifest.version), str(manifest.round), manifest.body[:12], manifest.created]


def main() -> None:
    """Entry point."""
    console.run(app)


if __name__ == "__main__":
    main()
