"""The coordinator's program: `sfumato-coordinator`. Parses, calls one function, prints; nothing is decided here."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from coordinator import backups, pki, policies, publish, qrcode, service
from coordinator.config import Home, find_home
from coordinator.store import Node, Role, Store
from export import console, policy
from export.console import DEBUG, HomeOption, JsonOption
from export.errors import UsageError
from export.ledger import Ledger
from export.release import CARD
from export.signing import VerifiedRelease

app = typer.Typer(
    name="sfumato-coordinator",
    no_args_is_help=True,
    add_completion=False,
    help="Runs rounds across artists' machines, judges what comes out, signs and publishes it.",
)
release_app = typer.Typer(no_args_is_help=True, help="Signed releases.")
policy_app = typer.Typer(no_args_is_help=True, help="What members agree to: policy.toml, signed.")
ledger_app = typer.Typer(no_args_is_help=True, help="The coordinator's account of joinings, policies, rounds and releases.")
nodes_app = typer.Typer(invoke_without_command=True, help="The members.")
app.add_typer(release_app, name="release")
app.add_typer(nodes_app, name="nodes")
app.add_typer(policy_app, name="policy")
app.add_typer(ledger_app, name="ledger")


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The federation's name.")],
    *,
    host: Annotated[str, typer.Option(help="Name or address under which artists reach this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Public port; 0 takes a free one and keeps it.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a coordinator up: its own authority, keys, and the base body as release 1."""
    with console.errors(as_json=as_json):
        place = find_home(home)
        service.init(place, name, host, port)
        data = {"home": str(place.root), "name": name}
        console.show(
            data, as_json=as_json, text=lambda: console.said(f"Set up in {place.root}.", "Next: sfumato-coordinator up")
        )


@app.command()
def up(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Run the coordinator until Ctrl-C."""
    with console.errors(as_json=as_json):
        place = find_home(home)
        config = place.config()
        console.log_to_stderr(debug=DEBUG)
        service.run(
            place,
            on_ready=lambda port: console.show(
                {"name": config.name, "host": config.host, "port": port},
                as_json=as_json,
                text=lambda: console.said(f"{config.name} answers at {config.host}:{port}. Ctrl-C ends it."),
            ),
        )


@app.command()
def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom the invite is for.")],
    *,
    role: Annotated[str, typer.Option(help="artist or gallery.")] = "artist",
    expires: Annotated[str, typer.Option(help="How long it can be used, e.g. 7d, 12h, 30m.")] = "7d",
    qr: Annotated[Path | None, typer.Option(help="Also write it as a QR code: a .svg or .png file.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take back the invites of that name that were not used.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an invite that one machine can join with, once. Shows it as text and as a QR code."""
    with console.errors(as_json=as_json):
        place = find_home(home)
        if revoke:
            taken = service.take_invites_back(place, name)
            console.show({"revoked": taken}, as_json=as_json, text=lambda: console.said(f"{taken} taken back."))
            return
        text = service.invite(place, name, _role(role), _seconds(expires))
        if qr is not None:
            qrcode.write(qr, text)
        data = {"invite": text, "name": name, "role": role}

        def show() -> None:
            console.said(text)
            console.talk.print(qrcode.for_terminal(text), highlight=False)  # beside the result: a script wants the text alone

        console.show(data, as_json=as_json, text=show)


@nodes_app.callback()
def nodes(context: typer.Context, *, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the members and whether their nodes are online, and the invites not used yet."""
    if context.invoked_subcommand is not None:
        return
    with console.errors(as_json=as_json):
        place = _ready(home)
        store, online = Store(place.database), service.online(place)
        members = [_member(place, node, online) for node in store.nodes_ever()]
        waiting = [
            {"alias": i.alias, "role": i.role, "expires": datetime.fromtimestamp(i.expires, UTC).isoformat(timespec="seconds")}
            for i in store.open_invites(time.time())
        ]

        def text() -> None:
            rows = [[str(m[field]) for field in ("alias", "role", "state", "digits", "joined")] for m in members]
            rows += [[i["alias"], i["role"], "invited", "", f"until {i['expires']}"] for i in waiting]
            console.table(["node", "role", "", "six digits", "joined"], rows)

        console.show({"nodes": members, "invites": waiting}, as_json=as_json, text=text)


@nodes_app.command("revoke")
def nodes_revoke(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The member's name or number.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a membership: from now on nothing of that node is taken, and nothing told to it."""
    with console.errors(as_json=as_json):
        member = service.end_membership(_ready(home), node)
        data = {"alias": member.alias, "node_id": str(member.node_id)}
        console.show(data, as_json=as_json, text=lambda: console.said(f"The membership of {member.alias} has ended."))


@app.command("round")
def hold_rounds(
    *,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="How many rounds to hold.")] = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold rounds: nodes train, updates are admitted, averaged, judged, and published if they are good."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        with console.talk.status("starting") as spinner:
            held = service.hold_rounds(place, rounds, spinner.update)
        if not as_json:  # told in any case; a machine is told one thing, the rounds or why they were for nothing
            _rounds_text(place, held)
        service.require_success(place, held)
        data = {"rounds": [_round(place, number) for number in held]}
        console.show(data, as_json=as_json, text=lambda: None)


@policy_app.command("show")
def policy_show(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the policy that holds, in the words its members read."""
    with console.errors(as_json=as_json):
        holds = policies.current(_ready(home))
        data = {"policy": asdict(holds.policy), "digest": holds.digest}
        console.show(data, as_json=as_json, text=lambda: console.said(*(f"- {line}" for line in policy.in_words(holds.policy))))


@policy_app.command("publish")
def policy_publish(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Sign policy.toml as it is now; members are asked to agree to it before they take part again."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        published = policies.publish(place)
        text = f"Policy {published.policy.version} holds. Members take part again once they have agreed to it."
        data = {"policy": asdict(published.policy), "digest": published.digest}
        console.show(data, as_json=as_json, text=lambda: console.said(text))


@ledger_app.command("verify")
def ledger_verify(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say whether the coordinator's account is unbroken, and the digest of its last line. Needs nothing but the file."""
    with console.errors(as_json=as_json):
        account = Ledger(_ready(home).ledger_file)
        lines, head = len(account.entries()), account.head()
        text = f"The account is unbroken: {lines} lines, the last one's digest is {head}"
        console.show({"lines": lines, "head": head}, as_json=as_json, text=lambda: console.said(text))


@release_app.command("list")
def release_list(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the published releases; the one that is served is marked."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        served = publish.current_release(place)
        found = [publish.open_release(place, version) for version in publish.versions(place)]
        data = {"releases": [_release(r) | {"current": r.digest == served.digest} for r in found]}
        rows = [
            [
                "*" if r.digest == served.digest else "",
                str(r.manifest.version),
                str(r.manifest.round),
                str(r.manifest.contributors),
                r.manifest.body[:12],
                r.manifest.created,
            ]
            for r in found
        ]
        columns = ["", "version", "round", "artists", "body", "created"]
        console.show(data, as_json=as_json, text=lambda: console.table(columns, rows))


@release_app.command("show")
def release_show(
    version: Annotated[int | None, typer.Argument(metavar="VERSION", help="The served one if not given.")] = None,
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a release says of itself: its card and its verdict."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        release = publish.current_release(place) if version is None else publish.open_release(place, version)
        card = release.read(CARD).decode()
        data = _release(release) | {"folder": str(release.folder), "card": card}
        console.show(data, as_json=as_json, text=lambda: console.said(str(release.folder), "", card))


@release_app.command("publish")
def release_publish(
    version: Annotated[int, typer.Argument(metavar="VERSION", help="A release that passed the gate.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the body of an earlier release again, as the newest: nodes never go back, so going back goes forward."""
    with console.errors(as_json=as_json):
        release = publish.publish_again(_ready(home), version)
        number = release.manifest.version
        console.show(
            _release(release), as_json=as_json, text=lambda: console.said(f"Release {version} is served again, as {number}.")
        )


@release_app.command("rollback")
def release_rollback(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Serve the body before the served one again, as the newest release; nodes take it up by themselves."""
    with console.errors(as_json=as_json):
        release = publish.rollback(_ready(home))
        text = f"The body of before is served again, as release {release.manifest.version}."
        console.show(_release(release), as_json=as_json, text=lambda: console.said(text))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write; it holds every key, so keep it safe.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all that makes this coordinator what it is to one file; it may go on running."""
    with console.errors(as_json=as_json):
        size = backups.backup(_ready(home), file)
        data = {"file": str(file), "bytes": size}
        console.show(data, as_json=as_json, text=lambda: console.said(f"{file}: {size / 2**20:.1f} MiB. It holds every key."))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What backup wrote.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a coordinator up again from a backup, in a folder that holds none. Members come back by themselves."""
    with console.errors(as_json=as_json):
        place = find_home(home)
        made = backups.restore(place, file)
        text = [
            f"Restored in {place.root}, as of {made}.",
            "End again whatever memberships were ended since: sfumato-coordinator nodes revoke NODE",
            "Next: sfumato-coordinator up",
        ]
        console.show({"home": str(place.root), "made": made}, as_json=as_json, text=lambda: console.said(*text))


@app.command()
def status(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say how the coordinator and its last rounds stand."""
    with console.errors(as_json=as_json):
        place = _ready(home)
        config = place.config()
        data = {
            "name": config.name,
            "running": service.is_running(place),
            "nodes": len(Store(place.database).nodes()),
            "release": service.served_version(place),
            "rounds": [_round(place, r.round) for r in Store(place.database).rounds()[-5:]],
        }

        def text() -> None:
            rows = [[key, str(value)] for key, value in data.items() if key != "rounds"]
            console.table(["", ""], rows)
            _rounds_text(place, [r.round for r in Store(place.database).rounds()[-5:]])

        console.show(data, as_json=as_json, text=text)


@app.command("serve", hidden=True)
def serve(*, home: HomeOption = None) -> None:
    """The embedded SuperLink and the public port; started by `up`."""
    with console.errors(as_json=False):
        console.log_to_stderr(debug=DEBUG)
        service.serve(_ready(home))


def _ready(home: Path | None) -> Home:
    place = find_home(home)
    place.config()
    return place


def _member(home: Home, node: Node, online: frozenset[int]) -> dict[str, object]:
    state = "revoked" if node.revoked else "online" if node.node_id in online else "offline"
    return {
        "alias": node.alias,
        "role": node.role,
        "node_id": str(node.node_id),
        "joined": node.joined,
        "revoked": node.revoked,
        "online": state == "online",
        "state": state if node.role == "artist" or node.revoked else "gallery",
        "digits": pki.digits(home, node.keys),
    }


def _role(text: str) -> Role:
    if text == "artist":
        return "artist"
    if text == "gallery":
        return "gallery"
    raise UsageError(f"there is no role {text!r}", advice="Use --role artist or --role gallery.")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,4})([dhm])", text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(f"{text!r} is not a time", advice="Write a number and d, h or m, such as 7d.")
    return int(match[1]) * {"d": 86400.0, "h": 3600.0, "m": 60.0}[match[2]]


def _release(release: VerifiedRelease) -> dict[str, object]:
    manifest = release.manifest
    return {
        "version": manifest.version,
        "round": manifest.round,
        "body": manifest.body,
        "contributors": manifest.contributors,
        "created": manifest.created,
        "verdict": asdict(manifest.verdict) if manifest.verdict else None,
    }


def _round(home: Home, number: int) -> dict[str, object]:
    store = Store(home.database)
    row = next(r for r in store.rounds() if r.round == number)
    names = {node.node_id: node.alias for node in store.nodes()}
    answers = [asdict(a) | {"node": names.get(a.node_id, "?"), "node_id": str(a.node_id)} for a in store.answers(number)]
    return asdict(row) | {"seconds": row.changed - row.started, "answers": answers}


def _rounds_text(home: Home, numbers: list[int]) -> None:
    store = Store(home.database)
    names = {node.node_id: node.alias for node in store.nodes()}
    for row in store.rounds():
        if row.round in numbers:
            console.said(f"round {row.round}: {row.state}, {row.detail} ({row.changed - row.started:.0f} s)")
            for a in store.answers(row.round):
                loss = f"loss {a.loss_before:.3f} → {a.loss_after:.3f}" if a.loss_before and a.loss_after else ""
                verdict = f"accepted, {a.bytes} bytes, {loss}" if a.accepted else f"not counted: {a.reason}"
                console.said(f"  {names.get(a.node_id, '?')}: {verdict}")


def main() -> None:
    """Entry point."""
    console.run(app)


if __name__ == "__main__":
    main()
