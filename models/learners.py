"""All representation learners; importing this module makes them known."""

from models.contrastive import CONTRASTIVE
from models.info_vae import info_vae
from models.representation import register
from models.vaal import VAAL

register(CONTRASTIVE)
register(info_vae())
register(VAAL)
