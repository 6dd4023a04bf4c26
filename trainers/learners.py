"""How each representation learner is trained; importing this module makes it known."""

from trainers import vaal
from trainers.representation import register

register("vaal", vaal.train)
