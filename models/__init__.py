"""Networks: what each is (ModelSpec), what goes in and comes out (preprocessing), and its weights by digest."""

from models._registry import get, names, register
from models.spec import ModelSpec
from models.unet import unet2d, unet3d

register("unet2d", unet2d)
register("unet3d", unet3d)

__all__ = ["ModelSpec", "get", "names", "register"]
