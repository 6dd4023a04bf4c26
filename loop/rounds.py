"""The loop itself: plan a round, hand out tickets, take labels back. The only writer of the store."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

import strategies
from loop import events, statements
from loop.catalogue import Catalogue
from loop.config import AppConfig
from loop.errors import BadInput, Conflict, NotFound, unknown
from loop.jobs import Jobs
from loop.overview import Overview
from loop.pool import WHOLE, BoolArray, Pool
from loop.returned import Returned, recorded
from loop.signals import FloatArray
from loop.store import Store, images, labels, leases, meta, round_items, rounds, skips, tickets
from loop.submitted import Submission, Submitted
from loop.tickets import Leases, Ticket, Wanted, index_of, item_json, key_of


@dataclass(frozen=True)
class Swept:
    """What was needed of a pool, by name, and the rows that could not be read and must not be asked for."""

    signals: Mapping[str, FloatArray]
    unreadable: BoolArray


SignalSource = Callable[[Pool, tuple[strategies.Need, ...]], Swept]


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
        self.submitted = Submitted(store)
        self._leases = Leases(config, clock)

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
                item_json(row) | {"state": row["state"], "image": row["image_id"]}
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
            self._leases.expire(connection)
            mine = (
                self._leases.still_there(connection, self._leases.of_annotator(connection, annotator))
                if annotator
                else []
            )
            if another:
                for row in mine:
                    self._leases.close(connection, row, "released", "asked for another")
            if of is not None:
                return [self._ask_for(connection, strategy, annotator, of, mine if resume and not another else [])]
            avoid = {(row["image_id"], item["slice"]) for row in mine for item in row["items"]} if another else set()
            given = [self._leases.renew(connection, row) for row in mine[:n]] if resume and not another else []
            number = self._leases.round_to_serve(connection, strategy)
            while number is not None and len(given) < n:
                best = self._leases.best_image(connection, number, avoid)
                ticket = self._leases.lease(connection, number, annotator, Wanted(best)) if best is not None else None
                if ticket is None:
                    break
                given.append(ticket)
            return given

    def _ask_for(
        self, connection: Connection, strategy: str, annotator: str, of: Wanted, mine: Sequence[RowMapping]
    ) -> Ticket:
        for row in mine:
            if row["image_id"] == of.image_id and of.slice in (None, *(item["slice"] for item in row["items"])):
                return self._leases.renew(connection, row)
        number = self._leases.round_to_serve(connection, strategy)
        if number is None:
            raise Conflict(f"No round of {strategy} is open, so nothing of {of.image_id!r} is asked for now.")
        usable = connection.execute(statements.USABLE, {"image": of.image_id}).first() is not None
        ticket = self._leases.lease(connection, number, annotator, of) if usable else None
        if ticket is None:
            raise Conflict(
                self._leases.why_not(connection, number, of) if usable else f"{of} cannot be read, or is gone."
            )
        return ticket

    def ticket(self, ticket_id: str) -> Ticket:
        """One ticket in whatever state.

        Raises:
            NotFound: no such ticket.
        """
        with self.store.read() as connection:
            return self._leases.read(connection, self._leases.row(connection, ticket_id))

    def tickets_of(self, image_id: str) -> list[Ticket]:
        """The tickets of an image that a label may still answer, oldest first: open, or expired."""
        with self.store.read() as connection:
            rows = connection.execute(statements.TICKETS_OF_IMAGE, {"image": image_id}).mappings().all()
            return [self._leases.read(connection, row) for row in rows]

    def release(self, ticket_id: str) -> None:
        """Give a ticket's items back; they are open to everybody again.

        Raises:
            NotFound, Gone, Conflict: no such ticket, expired, or closed already.
        """
        with self.store.write() as connection:
            self._leases.close(connection, self._leases.open_row(connection, ticket_id), "released", None)

    def renew(self, ticket_id: str) -> Ticket:
        """Let the lease run anew from now. Raises as `release`."""
        with self.store.write() as connection:
            return self._leases.renew(connection, self._leases.open_row(connection, ticket_id))

    def skip(self, ticket_id: str, reason: str) -> None:
        """Never ask for these items again, and keep why. Raises as `release`."""
        with self.store.write() as connection:
            ticket = self._leases.open_row(connection, ticket_id)
            keys = [key_of(item["slice"]) for item in ticket["items"]]
            self._leases.close(connection, ticket, "skipped", reason)
            self._skip(connection, ticket["image_id"], keys, ticket["annotator"], reason)

    def skip_items(self, image_id: str, slices: Sequence[int | None], reason: str, annotator: str = "") -> None:
        """Never ask for these slices of an image again, which nobody holds a ticket of; None is the whole volume.

        Raises:
            BadInput: the image has no such slice. Conflict: somebody annotates one of them now, or it is annotated.
        """
        image, keys = self.catalogue.image(image_id), sorted({key_of(index) for index in slices})
        if wrong := [key for key in keys if key != WHOLE and not 0 <= key < image["n_slices"]]:
            raise BadInput(f"{image_id!r} has the slices 0 to {image['n_slices'] - 1}, got {wrong[0]}.")
        with self.store.write() as connection:
            self._leases.expire(connection)
            for row in connection.execute(statements.LEASES_OF_IMAGE, {"image": image_id}):
                if row.slice in keys or WHOLE in (row.slice, *keys):
                    raise Conflict(
                        f"{Wanted(image_id, index_of(row.slice))} is being annotated by "
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
                self._leases.close(connection, row, "released", f"the image cannot be used: {reason}")
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
                named = self._leases.row(connection, ticket_id)
                if named["image_id"] != image_id:
                    raise Conflict(
                        f"Ticket {ticket_id} asks for image {named['image_id']!r}, the label is for {image_id!r}."
                    )
                return self._leases.read(connection, named).slices, ticket_id
            there = connection.execute(statements.TICKETS_OF_IMAGE, {"image": image_id}).mappings()
            found = [row for row in there if row["annotator"] == annotator]
            still_open = [row for row in found if row["state"] == "open"]
            if found:
                row = still_open[0] if still_open else found[-1]
                return self._leases.read(connection, row).slices, row["id"]
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
            if row["id"] == submission.ticket or (is_open and set(self._leases.read(connection, row).slices) <= done):
                self._leases.close(connection, row, "submitted", None)

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
