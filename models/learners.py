"""Every representation learner there is, made known by its name; importing this is enough."""

from models.info_vae import info_vae
from models.representation import register

register(info_vae())
