"""Networks: what each is (ModelSpec), what goes in and comes out (preprocessing), and its weights by digest."""

from models import dcan, nnunet, plain_unet, resnet_unet, unet
from models._registry import get, is_planned, names, register
from models.spec import ModelSpec

register("dcan", dcan.dcan)
register("nnunet", nnunet.nnunet, planned=True)
register("unet", plain_unet.unet)
register("unet2d", unet.unet2d)
register("unet3d", unet.unet3d)
register("unet_r18", resnet_unet.unet_r18)

__all__ = ["ModelSpec", "get", "is_planned", "names", "register"]
