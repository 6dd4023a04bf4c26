"""The statements behind every ask and every save, built once: building one takes longer than the database's answer."""

import sqlalchemy as sa

from loop.pool import WHOLE
from loop.store import events, images, labels, leases, round_items, rounds, submissions, tickets, unfiled

_image: sa.BindParameter[str] = sa.bindparam("image")
_ticket: sa.BindParameter[str] = sa.bindparam("ticket")
_round: sa.BindParameter[int] = sa.bindparam("round")
_at: sa.BindParameter[float] = sa.bindparam("now")
_state: sa.BindParameter[str] = sa.bindparam("new_state")

IMAGE = sa.select(images).where(images.c.id == _image)
IMAGE_OF_TICKET = sa.select(images.c.patient, images.c.axis, images.c.n_slices).where(images.c.id == _image)
ROUND_OF_TICKET = sa.select(rounds.c.strategy, rounds.c.selected_by).where(rounds.c.id == _round)

# --- tickets

TICKET = sa.select(tickets).where(tickets.c.id == _ticket)
TICKETS_OVER = sa.select(tickets).where(tickets.c.state == "open", tickets.c.expires_at <= _at)
TICKETS_OF_ANNOTATOR = (
    sa.select(tickets)
    .where(tickets.c.state == "open", tickets.c.annotator == sa.bindparam("annotator"))
    .order_by(tickets.c.opened_at)
)
TICKETS_OF_IMAGE = (
    sa.select(tickets)
    .where(tickets.c.image_id == _image, tickets.c.state.in_(("open", "expired")))
    .order_by(tickets.c.opened_at)
)
OPEN_TICKET = tickets.insert()
CLOSE_TICKET = (
    tickets.update()
    .where(tickets.c.id == _ticket)
    .values(state=_state, closed_at=_at, reason=sa.bindparam("because", type_=sa.Text))
)
RENEW_TICKET = tickets.update().where(tickets.c.id == _ticket).values(expires_at=sa.bindparam("until"))
LEASE = leases.insert()
END_LEASES = leases.delete().where(leases.c.ticket == _ticket)

# --- what a round has left

NEWEST_ROUND = (
    sa.select(rounds.c.id, rounds.c.state)
    .where(rounds.c.strategy == sa.bindparam("strategy"))
    .order_by(rounds.c.id.desc())
    .limit(1)
)
NEWEST_OPEN_ROUND = sa.select(rounds.c.id).where(rounds.c.state == "open").order_by(rounds.c.id.desc()).limit(1)

_taken = sa.exists().where(leases.c.image_id == round_items.c.image_id, leases.c.slice == round_items.c.slice)
_free = sa.select(round_items).where(round_items.c.round == _round, round_items.c.state == "pending", ~_taken)
_busy = sa.exists().where(leases.c.image_id == round_items.c.image_id)
_usable = sa.exists().where(images.c.id == round_items.c.image_id, ~images.c.missing, images.c.error.is_(None))

FREE_ITEMS = _free.where(_usable).order_by(_busy, round_items.c.rank).limit(sa.bindparam("most"))
"""Free items of a round whose image can be used: of images that nobody works on first, then best first."""

FREE_ITEMS_OF_IMAGE = (
    _free.where(round_items.c.image_id == _image)
    .order_by(round_items.c.slice != sa.bindparam("first", type_=sa.Integer), round_items.c.rank)
    .limit(sa.bindparam("most"))
)
"""Free items of one image: the slice `first`, if it is among them, then best first."""

ASKED_OF_IMAGE = (
    sa.select(round_items.c.slice, round_items.c.state)
    .where(round_items.c.round == _round, round_items.c.image_id == _image)
    .order_by(round_items.c.rank)
)
LEASES_OF_IMAGE = (
    sa.select(leases.c.slice, tickets.c.annotator)
    .join(tickets, tickets.c.id == leases.c.ticket)
    .where(leases.c.image_id == _image)
)
USABLE = sa.select(images.c.id).where(images.c.id == _image, ~images.c.missing, images.c.error.is_(None))
_pending = sa.exists().where(round_items.c.round == _round, round_items.c.state == "pending")
FINISH_ROUND = (
    rounds.update()
    .where(rounds.c.id == _round, rounds.c.state == "open", ~_pending)
    .values(state="done", closed_at=_at)
)

# --- labels

SUBMIT_CONTENT = unfiled.insert()
UNFILED = (
    sa.select(submissions.c.id, submissions.c.file, unfiled.c.content)
    .join(unfiled, unfiled.c.submission == submissions.c.id)
    .order_by(submissions.c.id)
    .limit(sa.bindparam("most"))
)
SUBMIT = submissions.insert().returning(submissions.c.id)
SUBMISSIONS_OF_IMAGE = sa.select(submissions).where(submissions.c.image_id == _image).order_by(submissions.c.id)
NEWEST_OF_TICKET = (
    sa.select(submissions)
    .where(submissions.c.image_id == _image, submissions.c.ticket == _ticket)
    .order_by(submissions.c.id.desc())
    .limit(1)
)
LABELS_OF_IMAGE = sa.select(labels.c.slice, labels.c.submission).where(labels.c.image_id == _image)
_slices: sa.BindParameter[list[int]] = sa.bindparam("slices", expanding=True)
UNLABEL = labels.delete().where(labels.c.image_id == _image, labels.c.slice.in_(_slices))
LABEL = labels.insert()
COUNT_LABELS = (
    images.update()
    .where(images.c.id == _image)
    .values(
        n_labeled=sa.select(sa.func.count()).where(labels.c.image_id == _image).scalar_subquery(),
        submission=sa.bindparam("number"),
    )
    .returning(images.c.n_labeled, images.c.n_slices)
)
ANSWER_SKIPPED = (
    round_items.update()
    .where(round_items.c.image_id == _image, round_items.c.slice.in_(_slices), round_items.c.state == "pending")
    .values(state="skipped")
    .returning(round_items.c.round)
)
_in_submission = sa.exists().where(
    labels.c.image_id == round_items.c.image_id,
    labels.c.slice == round_items.c.slice,
    labels.c.submission == sa.bindparam("number"),
)
ANSWER_LABELED = (
    round_items.update()
    .where(
        round_items.c.image_id == _image,
        round_items.c.state == "pending",
        sa.or_(_in_submission, (round_items.c.slice == WHOLE) & sa.bindparam("whole", type_=sa.Boolean)),
    )
    .values(state="labeled")
    .returning(round_items.c.round)
)
"""Items of the slices that a submission labelled, and of the whole volume if it has all its labels now."""

LOG = events.insert().returning(events.c.id)
