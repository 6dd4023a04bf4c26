"""How each representation learner is trained; importing this module makes it known."""

from trainers import contrastive
from trainers.representation import register

register("contrastive", contrastive.train)
