"""The loop itself: plan a round, hand out tickets, take labels back. The only writer of the store."""

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

import strategies
from loop import events, statements
from loop.catalogue import Catalogue
from loop.config import AppConfig
from loop.errors import BadInput, Conflict, Gone, NotFound, unknown
from loop.jobs import Jobs
from loop.overview import Overview
from loop.pool import WHOLE, BoolArray, Pool
from loop.returned import Returned, recorded
from loop.signals import FloatArray
from loop.store import Store, images, labels, leases, meta, round_items, rounds, skips, tickets, unfiled


@dataclass(frozen=True)
class Swept:
    """What was needed of a pool, by name, and the rows that could not be read and must not be asked for."""

    signals: Mapping[str, FloatArray]
    unreadable: BoolArray


_ANY = WHOLE - 1
"""No item's slice."""

SignalSource = Callable[[Pool, tuple[strategies.Need, ...]], Swept]


@dataclass(frozen=True)
class Ticket:
    """One image with its asked items, leased to one annotator until `expires_at`.

    Attributes:
        items: {"slice", "rank", "score", "why"} each; slice None asks for the whole volume.
        state: open, submitted, skipped, released, expired.
    """

    id: str
    round: int
    strategy: str
    selected_by: str
    image_id: str
    patient: str
    axis: int
    n_slices: int
    annotator: str
    items: list[dict[str, Any]]
    state: str
    opened_at: float
    expires_at: float

    @property
    def slices(self) -> list[int]:
        """The asked slices, ascending; all of them for a whole volume."""
        asked = [item["slice"] for item in self.items]
        return list(range(self.n_slices)) if None in asked else sorted(asked)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"slices": self.slices}


@dataclass(frozen=True)
class Wanted:
    """What a ticket is asked for by name: an image, or one slice of it and what else of the image the ticket has room for."""

    image_id: str
    slice: int | None = None

    def __str__(self) -> str:
        return f"{self.image_id!r}" if self.slice is None else f"Slice {self.slice} of {self.image_id!r}"


@dataclass(frozen=True)
class Submission:
    """A label as it was sent.

    Attributes:
        file: where it is kept, relative to the state folder.
        voxels: of each of `slices`, the voxels of each class, background first; () if nobody counted.
        content: what is to be written there, kept in the store until it is; None if the file is there and durable.
        slices: the slices it answers for.
        tag: "final" for an annotation, "original" for a start mask that annotates nothing.
        returned: SOP instance UID of what was noticed in the archive; "" if it came otherwise.
    """

    annotator: str
    digest: str
    file: str
    slices: Sequence[int]
    ticket: str | None
    params: Mapping[str, Any]
    tag: str = "final"
    voxels: Sequence[Sequence[int]] = ()
    content: bytes | None = None
    returned: str = ""


class Loop:
    """Rounds, tickets and submissions over one store.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, store: Store, config: AppConfig, clock: Callable[[], float] = time.time) -> None:
        self.store, self.config, self.clock = store, config, clock
        self.catalogue = Catalogue(store, config)
        self.jobs = Jobs(store, clock)
        self.overview = Overview(store)
        self.returned = Returned(store, clock)

    # --- rounds

    def plan(
        self,
        name: str,
        source: SignalSource,
        *,
        model: str | None,
        heads: Collection[str] = (),
        parameters: Mapping[str, Any] | None = None,
        budget: int | None = None,
    ) -> int | None:
        """Let a strategy choose the next round and open it; earlier rounds of that strategy stop being served.

        A strategy that needs a model while there is none, or a head that was not trained with it, is stood in for by the
        configured cold start.

        Args:
            source: computes what a strategy needs of a pool.
            model: digest of the weights that the signals are made with.
            heads: names of the auxiliary heads that they hold.

        Returns:
            The round's number, or None if nothing is left to ask for.

        Raises:
            NotFound, BadInput: unknown strategy or parameter. ValueError: the strategy broke its contract.
        """
        started = self.clock()
        pool = self.catalogue.build_pool()
        if not len(pool.candidates):
            return None
        strategy, selected_by = self.strategy(name, parameters), name
        if not strategy.can_choose_with(model, heads):
            strategy, selected_by = strategies.get(self.config.cold_start), self.config.cold_start
        budget = budget or self.config.budget
        round_no = self._next_round_no()
        signals, sweeping = dict[str, FloatArray](), 0.0
        draw = {"seed": self.config.seed, "round_no": round_no}
        while wanted := strategy.wants(pool, signals, budget, **draw):
            asked = self.clock()
            swept = source(pool, wanted)
            sweeping += self.clock() - asked
            signals, gone = signals | dict(swept.signals), swept.unreadable
            pool = replace(pool, held=pool.held | gone, labeled=pool.labeled & ~gone)
            if not len(pool.candidates):
                return None
        selection = strategy.ask(pool, signals, budget, **draw)
        header = {
            "strategy": name, "selected_by": selected_by, "parameters": self._parameters(name, parameters), "model": model,
            "unit": self.config.unit, "budget": budget, "candidates": len(pool.candidates), "seed": self.config.seed,
            "opened_at": self.clock(), "seconds": self.clock() - started - sweeping, "state": "open",
        }  # fmt: skip
        return self._open(header, pool, selection)

    def strategy(self, name: str, parameters: Mapping[str, Any] | None = None) -> strategies.Strategy:
        """The strategy of that name, with its parameters of the configuration and then these.

        Raises:
            NotFound, BadInput: unknown strategy or parameter.
        """
        return strategies.get(name, self._parameters(name, parameters))

    def _parameters(self, name: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
        return {**self.config.parameters.get(name, {}), **(parameters or {})}

    def _next_round_no(self) -> int:
        with self.store.read() as connection:
            return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(rounds.c.id), 0))).scalar_one()) + 1

    def _open(self, header: dict[str, Any], pool: Pool, selection: strategies.Selection) -> int:
        wanted = [pool.items[int(row)] for row in selection.rows]
        keys = [(item.image_id, WHOLE if item.slice is None else item.slice) for item in wanted]
        with self.store.write() as connection:
            self._supersede(connection, header["strategy"])
            number = int(connection.execute(rounds.insert().values(header).returning(rounds.c.id)).scalar_one())
            gone = self._answered(connection, [image_id for image_id, _ in keys])
            connection.execute(
                round_items.insert(),
                [
                    {
                        "round": number, "rank": rank, "image_id": image_id, "slice": index, "score": float(score),
                        "why": why, "state": "labeled" if (image_id, index) in gone else "pending",
                    }
                    for rank, ((image_id, index), score, why) in enumerate(
                        zip(keys, selection.scores, selection.why, strict=True)
                    )
                ],
            )  # fmt: skip
            events.log(
                connection, header["opened_at"], "round_opened", round=number, strategy=header["strategy"],
                selected_by=header["selected_by"], items=len(keys), model=header["model"],
            )  # fmt: skip
            self._close_finished(connection, [number])
        return number

    def _supersede(self, connection: Connection, strategy: str) -> None:
        mine = (rounds.c.strategy == strategy) & (rounds.c.state == "open")
        connection.execute(rounds.update().where(mine).values(state="superseded", closed_at=self.clock()))

    def _answered(self, connection: Connection, image_ids: Sequence[str]) -> set[tuple[str, int]]:
        """(image, slice) labelled or skipped while the round was being planned."""
        found: set[tuple[str, int]] = set()
        for image_id in set(image_ids):
            for table in (labels, skips):
                query = sa.select(table.c.slice).where(table.c.image_id == image_id)
                found.update((image_id, index) for index in connection.execute(query).scalars())
        whole = sa.select(images.c.id).where(images.c.id.in_(image_ids), images.c.n_labeled >= images.c.n_slices)
        return found | {(image_id, WHOLE) for image_id in connection.execute(whole).scalars()}

    def _close_finished(self, connection: Connection, numbers: Iterable[int]) -> list[int]:
        """Mark those rounds done that have nothing pending; the numbers that became so."""
        done = []
        for number in sorted(set(numbers)):
            if connection.execute(statements.FINISH_ROUND, {"round": number, "now": self.clock()}).rowcount:
                done.append(number)
                events.log(connection, self.clock(), "round_done", round=number)
        return done

    def newest_rounds(self) -> dict[str, RowMapping]:
        """{strategy: its newest round}."""
        newest = sa.select(sa.func.max(rounds.c.id)).group_by(rounds.c.strategy)
        with self.store.read() as connection:
            found = connection.execute(sa.select(rounds).where(rounds.c.id.in_(newest))).mappings()
            return {row["strategy"]: row for row in found}

    def served(self) -> list[str]:
        """The default strategy, and every other whose newest round somebody was served from."""
        newest = self.newest_rounds()
        asked = sa.select(tickets.c.round).where(tickets.c.round.in_([row["id"] for row in newest.values()])).distinct()
        with self.store.read() as connection:
            numbers = set(connection.execute(asked).scalars())
        used = [name for name, row in newest.items() if name in strategies.names() and row["id"] in numbers]
        return sorted({self.config.strategy, *used})

    def stood_in_for(self, since: float) -> list[str]:
        """The served strategies whose newest round, opened since then, found no head that they need in the weights in use."""
        newest, model = self.newest_rounds(), self.current_model()
        rows = [newest[name] for name in self.served() if name in newest and model is not None]
        return [
            row["strategy"]
            for row in rows
            if row["model"] == model and row["selected_by"] != row["strategy"] and row["opened_at"] >= since
        ]

    def round(self, number: int) -> dict[str, Any]:
        """A round with its items, first to be asked first.

        Raises:
            NotFound: no such round.
        """
        header = self.round_header(number)
        with self.store.read() as connection:
            query = sa.select(round_items).where(round_items.c.round == number).order_by(round_items.c.rank)
            items = [
                _item_json(row) | {"state": row["state"], "image": row["image_id"]}
                for row in connection.execute(query).mappings()
            ]
        return header | {"items": items}

    def round_header(self, number: int) -> dict[str, Any]:
        """A round without its items; raises as `round`."""
        with self.store.read() as connection:
            header = connection.execute(sa.select(rounds).where(rounds.c.id == number)).mappings().one_or_none()
        if header is None:
            raise NotFound(f"There is no round {number}.")
        return dict(header)

    def rounds(self, limit: int = 100, *, state: str | None = None) -> list[dict[str, Any]]:
        """The last rounds (in a state), newest first, each with how many of its items are labelled, skipped, pending."""
        with self.store.read() as connection:
            wanted = sa.select(rounds).order_by(rounds.c.id.desc()).limit(limit)
            if state is not None:
                wanted = wanted.where(rounds.c.state == state)
            headers = connection.execute(wanted).mappings().all()
            query = (
                sa.select(round_items.c.round, round_items.c.state, sa.func.count().label("n"))
                .where(round_items.c.round.in_([row["id"] for row in headers]))
                .group_by(round_items.c.round, round_items.c.state)
            )
            counts: dict[int, dict[str, int]] = {}
            for row in connection.execute(query):
                counts.setdefault(row.round, {})[row.state] = row.n
        return [dict(row) | {"items": counts.get(row["id"], {})} for row in headers]

    def round_done_since(self, at: float) -> bool:
        """Whether a round was finished after that time."""
        query = sa.select(rounds.c.id).where(rounds.c.state == "done", rounds.c.closed_at >= at).limit(1)
        with self.store.read() as connection:
            return connection.execute(query).first() is not None

    # --- tickets

    def ask(
        self,
        strategy: str,
        annotator: str = "",
        n: int = 1,
        *,
        resume: bool = True,
        another: bool = False,
        of: Wanted | None = None,
    ) -> list[Ticket]:
        """Lease up to n tickets of the strategy's open round; fewer, or none, when nothing is left to hand out.

        A strategy that has no round yet is served from the newest open round of any other while its own is planned.
        Images that nobody else works on come first; the same item is never leased twice.

        Args:
            annotator: who asks; "" is nobody in particular and always gets fresh tickets.
            resume: give a named annotator's own open tickets again, renewed, before fresh ones.
            another: release the annotator's own open tickets first, and prefer other items than those.
            of: one ticket of this very image, in the place of the best one; its own open ticket counts if it is of it.

        Raises:
            NotFound: no such strategy. Conflict: `of` cannot be had now, and why.
        """
        if strategy not in strategies.names():
            raise unknown("strategy", strategy, strategies.names())
        with self.store.write() as connection:
            self._expire(connection)
            mine = self._still_there(connection, self._open_tickets(connection, annotator)) if annotator else []
            if another:
                for row in mine:
                    self._close(connection, row, "released", "asked for another")
            if of is not None:
                return [self._ask_for(connection, strategy, annotator, of, mine if resume and not another else [])]
            avoid = {(row["image_id"], item["slice"]) for row in mine for item in row["items"]} if another else set()
            given = [self._renew(connection, row) for row in mine[:n]] if resume and not another else []
            number = self._round_to_serve(connection, strategy)
            while number is not None and len(given) < n:
                best = self._best_image(connection, number, avoid)
                ticket = self._lease(connection, number, annotator, Wanted(best)) if best is not None else None
                if ticket is None:
                    break
                given.append(ticket)
            return given

    def _still_there(self, connection: Connection, rows: Sequence[RowMapping]) -> list[RowMapping]:
        """Of open tickets, those whose image can be had; the others end, so that nobody is given them again."""
        there = []
        for row in rows:
            if connection.execute(statements.USABLE, {"image": row["image_id"]}).first() is None:
                self._close(connection, row, "released", "the image is gone")
            else:
                there.append(row)
        return there

    def _ask_for(
        self, connection: Connection, strategy: str, annotator: str, of: Wanted, mine: Sequence[RowMapping]
    ) -> Ticket:
        for row in mine:
            if row["image_id"] == of.image_id and of.slice in (None, *(item["slice"] for item in row["items"])):
                return self._renew(connection, row)
        number = self._round_to_serve(connection, strategy)
        if number is None:
            raise Conflict(f"No round of {strategy} is open, so nothing of {of.image_id!r} is asked for now.")
        usable = connection.execute(statements.USABLE, {"image": of.image_id}).first() is not None
        ticket = self._lease(connection, number, annotator, of) if usable else None
        if ticket is None:
            raise Conflict(self._why_not(connection, number, of) if usable else f"{of} cannot be read, or is gone.")
        return ticket

    def _why_not(self, connection: Connection, number: int, of: Wanted) -> str:
        """Why a round has nothing to hand out of what is wanted, in a sentence."""
        asked = connection.execute(statements.ASKED_OF_IMAGE, {"round": number, "image": of.image_id}).all()
        states = {row.slice: row.state for row in asked if of.slice is None or row.slice in (of.slice, WHOLE)}
        if not states:
            return f"{of} is not asked for in round {number}."
        holders = connection.execute(statements.LEASES_OF_IMAGE, {"image": of.image_id})
        held = [row.annotator or "somebody without a name" for row in holders if row.slice in states]
        if held:
            return f"{of} is being annotated by {', '.join(sorted(set(held)))}."
        return f"{of} is {' and '.join(sorted(set(states.values())))} already."

    def _open_tickets(self, connection: Connection, annotator: str) -> list[RowMapping]:
        return list(connection.execute(statements.TICKETS_OF_ANNOTATOR, {"annotator": annotator}).mappings())

    def _expire(self, connection: Connection) -> None:
        for row in connection.execute(statements.TICKETS_OVER, {"now": self.clock()}).mappings().all():
            self._close(connection, row, "expired", "the lease ran out")

    def _close(self, connection: Connection, ticket: RowMapping, state: str, reason: str | None) -> None:
        connection.execute(statements.END_LEASES, {"ticket": ticket["id"]})
        values = {"new_state": state, "now": self.clock(), "because": reason}
        connection.execute(statements.CLOSE_TICKET, {"ticket": ticket["id"], **values})
        events.log(
            connection,
            self.clock(),
            f"ticket_{state}",
            ticket=ticket["id"],
            image=ticket["image_id"],
            annotator=ticket["annotator"],
        )

    def _renew(self, connection: Connection, ticket: RowMapping) -> Ticket:
        expires = self.clock() + 60 * self.config.lease_minutes
        connection.execute(statements.RENEW_TICKET, {"ticket": ticket["id"], "until": expires})
        return self._ticket(connection, dict(ticket) | {"expires_at": expires})

    def _round_to_serve(self, connection: Connection, strategy: str) -> int | None:
        row = connection.execute(statements.NEWEST_ROUND, {"strategy": strategy}).one_or_none()
        if row is not None:
            return int(row.id) if row.state == "open" else None
        found = connection.execute(statements.NEWEST_OPEN_ROUND).scalar_one_or_none()
        return None if found is None else int(found)

    def _lease(self, connection: Connection, number: int, annotator: str, of: Wanted) -> Ticket | None:
        """A ticket of the image's free items; None if there are none, or the wanted one is not among them."""
        image_id, first = of.image_id, of.slice
        wanted = {
            "round": number, "image": image_id, "most": self.config.slices_per_ticket, "first": _ANY if first is None else first,
        }  # fmt: skip
        items = [_item_json(row) for row in connection.execute(statements.FREE_ITEMS_OF_IMAGE, wanted).mappings()]
        if not items or first not in (None, items[0]["slice"]):
            return None
        now = self.clock()
        row = {
            "id": uuid.uuid4().hex, "round": number, "image_id": image_id, "annotator": annotator, "items": items,
            "state": "open", "opened_at": now, "expires_at": now + 60 * self.config.lease_minutes,
        }  # fmt: skip
        connection.execute(statements.OPEN_TICKET, row)
        connection.execute(
            statements.LEASE,
            [{"image_id": image_id, "slice": _key(item["slice"]), "ticket": row["id"]} for item in items],
        )
        events.log(connection, now, "ticket_opened", ticket=row["id"], image=image_id, annotator=annotator)
        return self._ticket(connection, row)

    def _best_image(self, connection: Connection, number: int, avoid: set[tuple[str, int | None]]) -> str | None:
        """The image of the best free item; images nobody works on first, then items just given back last."""
        wanted = {"round": number, "most": len(avoid) + 1}
        rows = connection.execute(statements.FREE_ITEMS, wanted).mappings().all()
        fresh = [row for row in rows if (row["image_id"], _index(row["slice"])) not in avoid]
        return next((str(row["image_id"]) for row in [*fresh, *rows]), None)

    def _ticket(self, connection: Connection, row: RowMapping | dict[str, Any]) -> Ticket:
        image = connection.execute(statements.IMAGE_OF_TICKET, {"image": row["image_id"]}).one()
        by = connection.execute(statements.ROUND_OF_TICKET, {"round": row["round"]}).one()
        return Ticket(
            id=row["id"], round=row["round"], strategy=by.strategy, selected_by=by.selected_by, image_id=row["image_id"],
            patient=image.patient, axis=image.axis, n_slices=image.n_slices, annotator=row["annotator"],
            items=list(row["items"]), state=row["state"], opened_at=row["opened_at"], expires_at=row["expires_at"],
        )  # fmt: skip

    def ticket(self, ticket_id: str) -> Ticket:
        """One ticket in whatever state.

        Raises:
            NotFound: no such ticket.
        """
        with self.store.read() as connection:
            return self._ticket(connection, self._ticket_row(connection, ticket_id))

    def tickets_of(self, image_id: str) -> list[Ticket]:
        """The tickets of an image that a label may still answer, oldest first: open, or expired."""
        with self.store.read() as connection:
            rows = connection.execute(statements.TICKETS_OF_IMAGE, {"image": image_id}).mappings().all()
            return [self._ticket(connection, row) for row in rows]

    def _ticket_row(self, connection: Connection, ticket_id: str) -> RowMapping:
        row = connection.execute(statements.TICKET, {"ticket": ticket_id}).mappings().one_or_none()
        if row is None:
            raise NotFound(f"There is no ticket {ticket_id[:100]!r}.")
        return row

    def _open_ticket(self, connection: Connection, ticket_id: str) -> RowMapping:
        self._expire(connection)
        row = self._ticket_row(connection, ticket_id)
        if row["state"] == "expired":
            raise Gone(
                f"The lease of ticket {ticket_id} ran out and its items are open to others again. Ask for a new one."
            )
        if row["state"] != "open":
            raise Conflict(f"Ticket {ticket_id} is {row['state']} already.")
        return row

    def release(self, ticket_id: str) -> None:
        """Give a ticket's items back; they are open to everybody again.

        Raises:
            NotFound, Gone, Conflict: no such ticket, expired, or closed already.
        """
        with self.store.write() as connection:
            self._close(connection, self._open_ticket(connection, ticket_id), "released", None)

    def renew(self, ticket_id: str) -> Ticket:
        """Let the lease run anew from now. Raises as `release`."""
        with self.store.write() as connection:
            return self._renew(connection, self._open_ticket(connection, ticket_id))

    def skip(self, ticket_id: str, reason: str) -> None:
        """Never ask for these items again, and keep why. Raises as `release`."""
        with self.store.write() as connection:
            ticket = self._open_ticket(connection, ticket_id)
            keys = [_key(item["slice"]) for item in ticket["items"]]
            self._close(connection, ticket, "skipped", reason)
            self._skip(connection, ticket["image_id"], keys, ticket["annotator"], reason)

    def skip_items(self, image_id: str, slices: Sequence[int | None], reason: str, annotator: str = "") -> None:
        """Never ask for these slices of an image again, which nobody holds a ticket of; None is the whole volume.

        Raises:
            BadInput: the image has no such slice. Conflict: somebody annotates one of them now, or it is annotated.
        """
        image, keys = self.catalogue.image(image_id), sorted({_key(index) for index in slices})
        if wrong := [key for key in keys if key != WHOLE and not 0 <= key < image["n_slices"]]:
            raise BadInput(f"{image_id!r} has the slices 0 to {image['n_slices'] - 1}, got {wrong[0]}.")
        with self.store.write() as connection:
            self._expire(connection)
            for row in connection.execute(statements.LEASES_OF_IMAGE, {"image": image_id}):
                if row.slice in keys or WHOLE in (row.slice, *keys):
                    raise Conflict(
                        f"{Wanted(image_id, _index(row.slice))} is being annotated by "
                        f"{row.annotator or 'somebody without a name'}: skip or release that ticket."
                    )
            done = set(connection.execute(statements.LABELS_OF_IMAGE, {"image": image_id}).scalars())
            if answered := sorted(done & set(keys)):
                raise Conflict(f"{Wanted(image_id, answered[0])} is annotated already.")
            self._skip(connection, image_id, keys, annotator, reason)
            events.log(connection, self.clock(), "items_skipped", image=image_id, slices=keys, annotator=annotator)

    def _skip(self, connection: Connection, image_id: str, keys: Sequence[int], annotator: str, reason: str) -> None:
        connection.execute(skips.delete().where(skips.c.image_id == image_id, skips.c.slice.in_(keys)))
        about = {"image_id": image_id, "annotator": annotator, "reason": reason, "at": self.clock()}
        connection.execute(skips.insert(), [about | {"slice": key} for key in keys])
        # Items of open rounds are answered now; rounds with nothing left become done.
        touched = connection.execute(statements.ANSWER_SKIPPED, {"image": image_id, "slices": list(keys)})
        self._close_finished(connection, touched.scalars().all())

    def unusable(self, image_id: str, reason: str) -> None:
        """Ask no more for an image that turned out to be unreadable: its tickets end, and no round waits for it."""
        self.catalogue.mark_unreadable(image_id, reason, self.clock())
        with self.store.write() as connection:
            of_image = tickets.c.image_id == image_id
            for row in (
                connection.execute(sa.select(tickets).where(of_image, tickets.c.state == "open")).mappings().all()
            ):
                self._close(connection, row, "released", f"the image cannot be used: {reason}")
            pending = (round_items.c.image_id == image_id) & (round_items.c.state == "pending")
            touched = round_items.update().where(pending).values(state="unreadable").returning(round_items.c.round)
            self._close_finished(connection, set(connection.execute(touched).scalars()))

    def leased_images(self) -> set[str]:
        """Images that somebody annotates now."""
        with self.store.read() as connection:
            return set(connection.execute(sa.select(leases.c.image_id).distinct()).scalars())

    # --- labels

    def asked_slices(
        self, image: Mapping[str, Any] | RowMapping, annotator: str, ticket_id: str | None
    ) -> tuple[list[int], str | None]:
        """What a label that names no slices answers for, and the ticket it answers.

        The named ticket's slices; else those of the annotator's oldest open ticket on this image (nobody in particular is
        an annotator too); else those of the newest whose lease ran out, because a late label answers what was asked;
        else the whole volume, which is MONAI Label's own convention.

        Args:
            image: the image's record, of which id and n_slices are read.

        Raises:
            NotFound: no such ticket. Conflict: the ticket is for another image.
        """
        image_id = image["id"]
        with self.store.read() as connection:
            if ticket_id is not None:
                named = self._ticket_row(connection, ticket_id)
                if named["image_id"] != image_id:
                    raise Conflict(
                        f"Ticket {ticket_id} asks for image {named['image_id']!r}, the label is for {image_id!r}."
                    )
                return self._ticket(connection, named).slices, ticket_id
            there = connection.execute(statements.TICKETS_OF_IMAGE, {"image": image_id}).mappings()
            found = [row for row in there if row["annotator"] == annotator]
            still_open = [row for row in found if row["state"] == "open"]
            if found:
                row = still_open[0] if still_open else found[-1]
                return self._ticket(connection, row).slices, row["id"]
        return list(range(image["n_slices"])), None

    def tell(self, image_id: str, submission: Submission) -> int:
        """Record a label for ever; its slices are labelled from now on, and the ticket it answers is closed.

        A label that nobody asked for is accepted and counted.

        Returns:
            The submission's number; later numbers win where slices overlap.

        Raises:
            Conflict: it was noticed in the archive, and is recorded or refused already; nothing was changed.
        """
        now = self.clock()
        with self.store.write() as connection:
            record = {
                "image_id": image_id, "tag": submission.tag, "annotator": submission.annotator, "at": now,
                "digest": submission.digest, "file": submission.file, "slices": list(submission.slices),
                "ticket": submission.ticket, "params": dict(submission.params),
            }  # fmt: skip
            number = int(connection.execute(statements.SUBMIT, record).scalar_one())
            if submission.returned:
                recorded(connection, submission.returned, image_id, number)
            if submission.content is not None:
                connection.execute(statements.SUBMIT_CONTENT, {"submission": number, "content": submission.content})
            self._mark_labeled(connection, image_id, submission, number)
            if submission.tag == "final":
                self._end_leases(connection, image_id, submission)
            events.log(
                connection, now, "label_saved", image=image_id, slices=list(submission.slices), annotator=submission.annotator,
                submission=number, tag=submission.tag,
            )  # fmt: skip
        return number

    def _mark_labeled(self, connection: Connection, image_id: str, submission: Submission, number: int) -> None:
        slices = submission.slices
        if slices:
            connection.execute(statements.UNLABEL, {"image": image_id, "slices": list(slices)})
            counts: Sequence[Sequence[int] | None] = submission.voxels or [None] * len(slices)
            rows = [
                {"image_id": image_id, "slice": index, "submission": number, "voxels": voxels}
                for index, voxels in zip(slices, counts, strict=True)
            ]
            connection.execute(statements.LABEL, rows)
        row = connection.execute(statements.COUNT_LABELS, {"image": image_id, "number": number}).one()
        if slices:
            answered = {"image": image_id, "number": number, "whole": row.n_labeled >= row.n_slices}
            self._close_finished(connection, connection.execute(statements.ANSWER_LABELED, answered).scalars().all())

    def _end_leases(self, connection: Connection, image_id: str, submission: Submission) -> None:
        """Close the answered ticket, late or not, and every other on this image whose items are all labelled now."""
        rows = connection.execute(statements.TICKETS_OF_IMAGE, {"image": image_id}).mappings().all()
        if not rows:
            return
        done = set(connection.execute(statements.LABELS_OF_IMAGE, {"image": image_id}).scalars())
        for row in rows:
            is_open = row["state"] == "open"
            if row["id"] == submission.ticket or (is_open and set(self._ticket(connection, row).slices) <= done):
                self._close(connection, row, "submitted", None)

    def repeated(
        self, image_id: str, ticket_id: str, *, digest: str, slices: Sequence[int], params: Mapping[str, Any], tag: str
    ) -> int | None:
        """The number of what a ticket was answered with last, if it is this again: its answer was lost on the way."""
        asked = {"image": image_id, "ticket": ticket_id}
        with self.store.read() as connection:
            last = connection.execute(statements.NEWEST_OF_TICKET, asked).one_or_none()
        sent = (digest, list(slices), dict(params), tag)
        if last is None or (last.digest, list(last.slices), dict(last.params), last.tag) != sent:
            return None
        return int(last.id)

    def submissions(self, image_id: str) -> list[dict[str, Any]]:
        """Everything that was ever sent for an image, oldest first."""
        with self.store.read() as connection:
            found = connection.execute(statements.SUBMISSIONS_OF_IMAGE, {"image": image_id})
            return [dict(row) for row in found.mappings()]

    def unfiled(self, most: int) -> list[tuple[int, str, bytes]]:
        """(submission, its file, what belongs into it) of the oldest submissions that have no file yet."""
        with self.store.read() as connection:
            return [(row.id, row.file, row.content) for row in connection.execute(statements.UNFILED, {"most": most})]

    def content(self, submission: int) -> bytes | None:
        """What was sent, while it has no file; None when its file is there."""
        query = sa.select(unfiled.c.content).where(unfiled.c.submission == submission)
        with self.store.read() as connection:
            found: bytes | None = connection.execute(query).scalar_one_or_none()
        return found

    def filed(self, submissions: Sequence[int]) -> None:
        """Those submissions have a durable file now."""
        with self.store.write() as connection:
            connection.execute(unfiled.delete().where(unfiled.c.submission.in_(submissions)))

    def labeled_slices(self, image_id: str) -> dict[int, int]:
        """{slice: the submission that counts for it}."""
        with self.store.read() as connection:
            return dict(connection.execute(statements.LABELS_OF_IMAGE, {"image": image_id}).all())

    def composed(self, held: Mapping[str, int]) -> None:
        """The composite mask of each image on disk holds everything up to a submission, durably."""
        if not held:
            return
        with self.store.write() as connection:
            for image_id, submission in held.items():
                where = (images.c.id == image_id) & (images.c.composite < submission)
                connection.execute(images.update().where(where).values(composite=submission))

    def labeled_images(self) -> list[dict[str, Any]]:
        """Images with annotated slices: the record, and `slices` ascending. What training and validation see.

        Only slices that the composite mask on disk has: one that was saved a moment ago waits for the next training.
        """
        with self.store.read() as connection:
            rows = (
                connection.execute(sa.select(images).where(images.c.n_labeled > 0).order_by(images.c.row))
                .mappings()
                .all()
            )
            found: dict[str, list[int]] = {}
            composed = (
                sa.select(labels.c.image_id, labels.c.slice)
                .join(images, (images.c.id == labels.c.image_id) & (labels.c.submission <= images.c.composite))
                .order_by(labels.c.slice)
            )
            for row in connection.execute(composed):
                found.setdefault(row.image_id, []).append(row.slice)
        return [dict(row) | {"slices": found[row["id"]]} for row in rows if row["id"] in found]

    # --- models

    def published(self, name: str, digest: str, metrics: Mapping[str, Any], how: str = "trained") -> None:
        """These weights are in use from now on: rounds planned with others are stale."""
        with self.store.write() as connection:
            connection.execute(meta.delete().where(meta.c.key == "model"))
            connection.execute(meta.insert().values(key="model", value=digest))
            events.log(
                connection, self.clock(), "model_published", name=name, digest=digest, metrics=dict(metrics), how=how
            )

    def current_model(self) -> str | None:
        """Digest of the weights in use."""
        with self.store.read() as connection:
            return connection.execute(sa.select(meta.c.value).where(meta.c.key == "model")).scalar_one_or_none()

    def item_states(self, image_id: str) -> list[dict[str, Any]]:
        """Every slice of an image: labeled, skipped, leased, asked, or open, with the newest score and reason it got."""
        image = self.catalogue.image(image_id)
        with self.store.read() as connection:
            done = {
                row.slice: row.submission
                for row in connection.execute(sa.select(labels).where(labels.c.image_id == image_id))
            }
            skipped = {
                row.slice: row.reason
                for row in connection.execute(sa.select(skips).where(skips.c.image_id == image_id))
            }
            leased = {
                row.slice: row.ticket
                for row in connection.execute(sa.select(leases).where(leases.c.image_id == image_id))
            }
            query = sa.select(round_items).where(round_items.c.image_id == image_id).order_by(round_items.c.round)
            asked = {row["slice"]: row for row in connection.execute(query).mappings()}
        states = []
        for index in range(image["n_slices"]):
            keys = (index, WHOLE)
            state: dict[str, Any] = {"slice": index, "state": "open"}
            for name, known in (("asked", asked), ("leased", leased), ("skipped", skipped), ("labeled", done)):
                found = next((known[key] for key in keys if key in known), None)
                if found is None or (name == "asked" and found["state"] != "pending"):
                    continue
                state["state"] = name
                if name != "asked":
                    state[{"leased": "ticket", "skipped": "reason", "labeled": "submission"}[name]] = found
            last = next((asked[key] for key in keys if key in asked), None)
            if last is not None:
                state |= {"round": last["round"], "rank": last["rank"], "score": last["score"], "why": last["why"]}
            states.append(state)
        return states


def _key(index: int | None) -> int:
    return WHOLE if index is None else index


def _index(key: int) -> int | None:
    return None if key == WHOLE else key


def _item_json(row: RowMapping) -> dict[str, Any]:
    return {"slice": _index(row["slice"]), "rank": row["rank"], "score": row["score"], "why": row["why"]}
