"""All representation learners; importing this module makes them known."""

from models.contrastive import CONTRASTIVE
from models.representation import register

register(CONTRASTIVE)
