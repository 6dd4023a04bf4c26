"""How every representation learner is trained, made known by its name; importing this is enough."""

from trainers import info_vae
from trainers.representation import register

register("info_vae", info_vae.train)
