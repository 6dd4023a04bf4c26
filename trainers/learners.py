"""How each representation learner is trained; importing this module makes it known."""

from trainers import contrastive, info_vae, vaal
from trainers.representation import register

register("contrastive", contrastive.train)
register("info_vae", info_vae.train)
register("vaal", vaal.train)
