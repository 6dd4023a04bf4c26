"""All representation learners; importing this module makes them known."""

from models.representation import register
from models.vaal import VAAL

register(VAAL)
